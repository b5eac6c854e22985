"""The episodes that count are the first to begin: the mean over them is right whatever their lengths."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_envs import ScriptedMultiAgentEnv
from lottery_env import DEVIATION, LONG, MEAN, Lottery, config, runner
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_haml import HAPPOConfig
from rllib_haml.algorithms.evaluation import WholeEpisodes
from rllib_haml.sampling.evaluation import dealt, play, results_of
from rllib_haml.sampling.faults import EnvironmentFault, RaisedWhenRead
from rllib_haml.sampling.joint_env_runner import JointEnvRunner
from rllib_haml.sampling.tickets import Tickets

CALLS = 20


def is_right(lengths: list[int]) -> bool:
    return abs(np.mean(lengths) - MEAN) < 3 * DEVIATION / np.sqrt(len(lengths))


def lengths(env_runner: Any, **how: Any) -> list[int]:
    return [len(f) for _ in range(CALLS) for f in env_runner.sample(explore=False, **how)]


@pytest.mark.parametrize("number", [3, 10])
def test_episodes_are_counted_by_when_they_begin(number: int) -> None:
    found = lengths(runner(), num_episodes=number)
    assert len(found) == CALLS * number
    assert is_right(found)


def test_a_train_batch_of_complete_episodes_is_counted_so_too() -> None:
    env_runner = runner()
    env_runner.config = env_runner.config.copy(copy_frozen=False).env_runners(batch_mode="complete_episodes")
    found = lengths(env_runner)
    assert len(found) == CALLS * 8
    assert is_right(found)


def test_control_the_first_to_end_are_the_short_ones() -> None:
    env_runner, found = runner(), []
    for _ in range(CALLS):
        fragments = env_runner.sample(num_timesteps=8 * LONG, force_reset=True, explore=False)
        ended = [f for f in fragments if f.terminated]
        found += [len(f) for f in sorted(ended, key=lambda f: f.env_t)][:10]
    assert not is_right(found)


def test_rllibs_own_env_runner_counts_the_first_to_end() -> None:
    """If this fails, RLlib has mended it: the warning that names it is then no longer true."""
    settings = config(num_envs=32).env_runners(env_runner_cls=MultiAgentEnvRunner)
    settings.validate()
    stock = MultiAgentEnvRunner(config=settings, worker_index=0)
    assert not is_right([len(e) for e in stock.sample(num_episodes=12, explore=False)])


def test_who_has_no_ticket_is_not_stepped() -> None:
    env_runner = runner()
    Lottery.stepped = 0
    found = [len(f) for f in env_runner.sample(num_episodes=8, explore=False)]
    assert Lottery.stepped == sum(found), "whose episode is over waits for the others"


def test_tickets_go_to_those_who_begin() -> None:
    tickets = Tickets(4, 3)
    assert tickets.held.tolist() == [0, 1, 2]
    assert tickets.spent([1], ["a", "b", "c"]) == [1]
    assert tickets.spent([0, 1], ["a", "d", "c"]) == []
    assert tickets.held_by_any
    assert tickets.spent([2], ["a", "d", "c"]) == []
    assert not tickets.held_by_any
    assert tickets.episodes == ["a", "b", "c", "d"]
    assert Tickets(1, 3).spent([2], ["", "", "surplus"]) == []


def test_whoever_waits_may_have_a_mask_that_allows_nothing() -> None:
    """A policy of the user's own may make NaN of such a mask; nobody acts there."""

    class Masked(ScriptedMultiAgentEnv):
        def step(self, action_dict: Any) -> Any:
            obs, rewards, terminateds, truncateds, _ = super().step(action_dict)
            allowed = np.full(2, not truncateds["__all__"])
            return obs, rewards, terminateds, truncateds, {"scout": {"action_mask": allowed}}

    lengths = iter([2, 9])
    settings: Any = HAPPOConfig().environment(lambda env_config: Masked(length=next(lengths, 3)))
    settings.env_runners(num_env_runners=0, num_envs_per_env_runner=2).training(team_reward="mean")
    settings.rl_module(model_config={"fcnet_hiddens": [4]}).validate()
    lengths = iter([2, 9])
    env_runner = JointEnvRunner(config=settings, worker_index=0)
    seen, act = [], env_runner.module.act
    env_runner.module.act = lambda obs, masks, *rest, **how: (  # pyright: ignore
        seen.append({a: m.copy() for a, m in masks.items()}) or act(obs, masks, *rest, **how)
    )
    assert [len(f) for f in env_runner.sample(num_episodes=2)] == [2, 9]
    assert all(masks["scout"].any(-1).all() for masks in seen if masks)


# An evaluation.


class Group:
    """Env runners that answer at once, `late` ones never; what RLlib's group is asked here."""

    def __init__(self, number: int) -> None:
        self.env_runners = {i + 1: runner(2, worker_index=i + 1) for i in range(number)}
        self.late: set[int] = set()
        self.dead: set[int] = set()
        self._answers: list[Any] = []
        self.asked = 0

    def healthy_worker_ids(self) -> list[int]:
        return [i for i in self.env_runners if i not in self.dead]

    def foreach_env_runner(self, ask: Any, *, remote_worker_ids: list[int], **_: Any) -> list[Any]:
        self.asked += 1
        return [ask(self.env_runners[i]) for i in remote_worker_ids if i not in self.late | self.dead]

    def foreach_env_runner_async(self, ask: Any, tag: str) -> None:
        self.asked += 1
        self._answers = [(i, ask(one)) for i, one in self.env_runners.items() if i not in self.late]

    def num_in_flight_async_reqs(self, tag: str) -> int:
        return len(self._answers) + len(self.late)

    def fetch_ready_async_reqs(self, **_: Any) -> list[Any]:
        ready, self._answers = self._answers, []
        return ready


def algorithm(group: Any = None, **evaluation: Any) -> Any:
    algo: Any = object.__new__(WholeEpisodes)
    algo.config = config(2).evaluation(**evaluation)
    algo.evaluation_config = algo.config.copy().env_runners(
        num_env_runners=len(group.env_runners) if group else 0
    )
    algo.eval_env_runner_group, algo.metrics, algo._iteration = group, MetricsLogger(root=True), 0
    return algo


def results(algo: Any) -> Any:
    return algo.metrics.peek(("evaluation", "env_runners"), latest_merged_only=True)


def test_several_env_runners_share_the_episodes() -> None:
    algo = algorithm(Group(2), evaluation_duration=5)
    _, env_steps, agent_steps, _ = algo._evaluate_with_fixed_duration()
    found = results(algo)
    assert found["num_episodes"] == 5
    assert found["team_return_mean"] == pytest.approx(env_steps / 5)
    assert agent_steps == 2 * env_steps
    assert dealt(5, [1, 3]) == {1: 3, 3: 2}
    assert dealt(1, [1, 3]) == {1: 1}, "who has no share is not asked"


def test_timesteps_are_a_number_of_episodes_that_is_settled_beforehand() -> None:
    algo = algorithm(evaluation_duration=200, evaluation_duration_unit="timesteps")
    env_runner, found, steps = runner(2), [], 0
    for _ in range(CALLS):
        length = algo._episode_length
        _, env_steps, _, _ = algo._evaluate_on_local_env_runner(env_runner)
        number = results(algo)["num_episodes"]
        assert length is None or number == max(1, round(200 / length))
        found.append(results(algo)["team_return_mean"])
        steps += env_steps
    assert abs(np.mean(found) - MEAN) < 3 * DEVIATION / np.sqrt(steps / MEAN)
    assert steps / CALLS == pytest.approx(200, rel=0.2)


def test_remote_timesteps_and_agent_steps() -> None:
    algo = algorithm(Group(2), evaluation_duration=400, evaluation_duration_unit="timesteps")
    algo.config.count_steps_by = "agent_steps"
    algo._evaluate_with_fixed_duration()
    _, _, agent_steps, _ = algo._evaluate_with_fixed_duration()
    assert agent_steps == pytest.approx(400, rel=0.7)


def test_who_is_late_is_told_of(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr("rllib_haml.algorithms.evaluation.logger.propagate", True)
    group = Group(2)
    group.late = {2}
    algo = algorithm(group, evaluation_duration=6, evaluation_sample_timeout_s=7.0)
    algo._evaluate_with_fixed_duration()
    assert results(algo)["num_episodes"] == 3
    assert "1 evaluation env runners need more than evaluation_sample_timeout_s=7.0" in caplog.text
    assert "favours short episodes" in caplog.text


def test_control_the_share_of_one_that_died_is_played_by_the_others(caplog: pytest.LogCaptureFixture) -> None:
    group = Group(2)
    ask = group.foreach_env_runner

    def dies(*args: Any, **how: Any) -> list[Any]:
        group.dead = {2}
        return ask(*args, **how)

    group.foreach_env_runner = dies  # type: ignore[method-assign]
    algo = algorithm(group, evaluation_duration=6)
    algo._evaluate_with_fixed_duration()
    assert algo.metrics.peek(("evaluation", "env_runners", "num_episodes")) == 6
    assert not caplog.text


def test_what_was_begun_when_training_ends_is_waited_for() -> None:
    group, training = Group(2), Future[None]()
    algo = algorithm(group, evaluation_duration="auto", evaluation_parallel_to_training=True)
    fetch = group.fetch_ready_async_reqs

    def ends(**how: Any) -> list[Any]:
        if group.asked == 3 and not training.done():
            training.set_result(None)
        return fetch(**how)

    group.fetch_ready_async_reqs = ends  # type: ignore[method-assign]
    algo._evaluate_with_auto_duration(training)
    assert results(algo)["num_episodes"] == 3 * 2 * 2, "three rounds, an episode of each sub-environment"


def test_a_fault_in_an_evaluation_is_raised() -> None:
    group = Group(1)
    group.foreach_env_runner = lambda *_, **__: [  # type: ignore[method-assign]
        RaisedWhenRead(EnvironmentFault("it fell over"))
    ]
    with pytest.raises(EnvironmentFault, match="it fell over"):
        algorithm(group, evaluation_duration=1)._evaluate_with_fixed_duration()


def test_without_an_environment_here_it_says_what_to_set() -> None:
    nowhere: Any = SimpleNamespace(env=None)
    with pytest.raises(ValueError, match="evaluation_num_env_runners=1"):
        algorithm(evaluation_duration=1)._evaluate_on_local_env_runner(nowhere)


def test_more_episodes_than_rllibs_window_are_all_counted() -> None:
    played = play(runner(), shares={0: 150}, explore=False, number=0)
    logger = MetricsLogger(root=True)
    logger.aggregate(results_of([played]))
    assert logger.peek("team_return_mean") == pytest.approx(played.env_steps / 150)
    assert logger.peek("team_return_min") == 2
