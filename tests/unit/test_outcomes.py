"""What episodes came to: told once, by the last piece of an episode, averaged over the last ones."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fake_envs import NAMES, ScriptedMultiAgentEnv, ScriptedParallelEnv, action_script
from fragments import make_fragment
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_haml import HAPPOConfig
from rllib_haml.cli import play
from rllib_haml.cli.evaluate import evaluate
from rllib_haml.cli.progress import _Start, progress_line
from rllib_haml.sampling.evaluation import play as play_share
from rllib_haml.sampling.evaluation import results_of
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.fragment import JointFragment, joined
from rllib_haml.sampling.joint_env_runner import JointEnvRunner
from rllib_haml.sampling.make_vector import make_vector_team_env
from rllib_haml.sampling.outcomes import outcome_of
from rllib_haml.sampling.team_returns import TeamReturns


def test_any_agent_may_tell_it() -> None:
    infos = {
        "zed": None,
        "left": {"other": 3},
        "right": {"outcome": {"win": True, "margin": np.float32(0.5)}},
        "boss": {"outcome": {"win": 1, "time": np.array(3)}},
    }
    assert outcome_of(infos) == {"win": 1.0, "margin": 0.5, "time": 3.0}
    assert outcome_of({"zed": {}, "left": {"outcome": {}}}) == {}


@pytest.mark.parametrize(
    "outcome, words",
    [
        ({"win": 0.0}, "'win' as 0, another agent's as 1; expected one number"),
        (1.0, "tells the outcome 1.0, expected named numbers"),
        ({"time": "long"}, "'time' as 'long', expected a finite number"),
        ({"time": float("nan")}, "'time' as nan"),
        ({3: 1.0}, "3 as 1.0"),
        ({"time": np.ones(2)}, "expected a finite number"),
    ],
)
def test_what_is_no_outcome_is_an_error_that_names_the_agent(outcome: Any, words: str) -> None:
    with pytest.raises(EnvironmentFault, match=words) as caught:
        outcome_of({"zed": {"outcome": {"win": 1.0}}, "left": {"outcome": outcome}})
    assert caught.value.agent == "left"


def test_disagreement_is_found_where_it_happens() -> None:
    class Quarrel(ScriptedMultiAgentEnv):
        def step(self, action_dict: dict[str, Any]) -> Any:
            *rest, infos = super().step(action_dict)
            over = self.time == self.script.length
            return *rest, {a: {"outcome": {"win": float(i)}} if over else {} for i, a in enumerate(infos)}

    vec = make_vector_team_env(lambda: Quarrel(length=2), 2)
    vec.reset([0, 1], [None, None])
    actions = {a: np.stack([x, x]) for a, x in action_script(Quarrel(), 0, 0).items()}
    vec.step(actions)
    with pytest.raises(EnvironmentFault, match="'win'") as caught:
        vec.step(actions)
    fault = caught.value
    assert (fault.method, fault.sub_env, fault.step, fault.agent) == ("step", 0, 2, "carrier")


def sampler(kind: type, **script: Any) -> JointEnvRunner:
    config: Any = HAPPOConfig().environment(kind, env_config=script, disable_env_checking=True)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=2).training(team_reward="mean")
    config.rl_module(model_config={"fcnet_hiddens": [4]}).validate()
    return JointEnvRunner(config=config)


@pytest.mark.parametrize("kind", [ScriptedMultiAgentEnv, ScriptedParallelEnv])
@pytest.mark.parametrize("end", ["terminated", "truncated", "both"])
def test_only_the_last_piece_of_an_episode_has_it(kind: type, end: str) -> None:
    runner = sampler(kind, end=end, outcomes=("anchor",))
    pieces: list[JointFragment] = []
    for _ in range(3):  # 7 steps each, of episodes of 5
        pieces += runner.sample(num_timesteps=14)
    ended = [f for f in pieces if f.terminated or f.truncated]
    assert len(ended) == 2 * 4
    assert len(pieces) > len(ended), "some pieces were cut by the end of sampling"
    for fragment in pieces:
        number = float(fragment.obs["scout"][0, 1])
        expected = {"win": number % 2, "number": number} if fragment in ended else {}
        assert fragment.outcome == expected
        assert fragment[: len(fragment)].outcome == expected
        assert fragment[: len(fragment) - 1].outcome == {}
    last = next(f for f in ended if f.env_t > 0)
    assert joined([f for f in pieces if f.episode_id == last.episode_id]).outcome == last.outcome != {}


def test_restored_sub_environments_keep_it() -> None:
    """An episode that has ended and waits for its reset."""
    vecs: Any = [
        make_vector_team_env(lambda: ScriptedMultiAgentEnv(length=1, outcomes=NAMES), 2) for _ in (0, 1)
    ]
    for vec in vecs:
        vec.reset([0, 1], [None, None])
    actions = {a: np.stack([x, x]) for a, x in action_script(ScriptedMultiAgentEnv(), 0, 0).items()}
    vecs[0].step(actions)
    restored = vecs[1].set_state(pickle.loads(pickle.dumps(vecs[0].get_state())))
    assert [restored.outcome_of(e) for e in (0, 1)] == [{"win": 0.0, "number": 0.0}] * 2


def ended(index: int, **outcome: float) -> JointFragment:
    return make_fragment(3, index, terminated=True, outcome=outcome)


def test_means_over_the_last_episodes_that_told() -> None:
    returns = TeamReturns(3, "shared", "arena")
    returns.add([make_fragment(3, 9)])
    returns.add([ended(0)])
    assert "outcome_mean" not in returns.summary(), "no environment told any"
    returns.add([ended(1, win=1.0), ended(2, win=0.0, time=7.0)])
    assert returns.summary()["outcome_mean"] == {"win": 0.5, "time": 7.0}
    restored = TeamReturns(3, "shared", "arena")
    restored.set_state(pickle.loads(pickle.dumps(returns.get_state())))
    assert restored.summary() == returns.summary()
    for one in (returns, restored):
        one.add([ended(3, win=1.0)])
        one.add([ended(4, win=1.0)])
        assert one.summary()["outcome_mean"] == {"win": pytest.approx(2 / 3), "time": 7.0}
    old = {key: value for key, value in returns.get_state().items() if key != "outcomes"}
    restored.set_state(old)  # a checkpoint of earlier versions
    assert "outcome_mean" not in restored.summary()


def test_evaluation_reports_it() -> None:
    def told(runner: JointEnvRunner, number: int) -> tuple[list[float], Any]:
        played = play_share(runner, shares={0: number}, explore=False, number=0)
        logger = MetricsLogger(root=True)
        logger.aggregate(results_of([played]))
        return [o["number"] for o in played.outcomes if o], logger.peek()

    numbers, found = told(sampler(ScriptedMultiAgentEnv, outcomes=NAMES), 3)
    expected = {"win": np.mean([n % 2 for n in numbers]), "number": np.mean(numbers)}
    assert found["outcome_mean"] == pytest.approx(expected)
    assert "outcome_mean" not in told(sampler(ScriptedMultiAgentEnv), 1)[1]


def test_rllib_evaluate_shows_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "class_and_ctor_args.pkl").touch()
    runner = sampler(ScriptedMultiAgentEnv, outcomes=NAMES)
    algorithm: Any = SimpleNamespace(env_runner=runner, config=runner.config)
    monkeypatch.setattr(play, "play", lambda *args: play._episodes(algorithm, 2, None))
    result = CliRunner().invoke(evaluate, [str(tmp_path)], catch_exceptions=False)
    first, *_, win, _ = result.output.splitlines()
    assert first.endswith("length 5  win 0  number 0")
    assert win.startswith("win          mean 0.")


def test_the_progress_line_shows_it() -> None:
    result = {"env_runners/team_return_mean": 6.0, "env_runners/outcome_mean/win": 0.625}
    assert "team return 6.00  win 0.62" in progress_line(result, {}, _Start(0.0, 0))
