"""Connectors of the user's: policies learn from what they saw, or the config is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import tree
from fake_envs import ScriptedMultiAgentEnv, ScriptedParallelEnv
from gymnasium import spaces
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.env_to_module import (
    FlattenObservations,
    MeanStdFilter,
    PrevActionsPrevRewards,
)
from ray.rllib.connectors.env_to_module.frame_stacking import FrameStackingEnvToModule
from ray.rllib.connectors.env_to_module.observation_preprocessor import (
    MultiAgentObservationPreprocessor,
    SingleAgentObservationPreprocessor,
)
from ray.rllib.core.columns import Columns
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.tune.registry import register_env

from rllib_haml import HAPPOConfig, IPPOConfig, LoRASAConfig
from rllib_haml.learners.connector import JointBatchConnector, state_size
from rllib_haml.learners.module_policy import ModulePolicy
from rllib_haml.sampling.from_episodes import as_fragments
from rllib_haml.sampling.seen import SEEN

OBSERVATIONS: dict[str, spaces.Space] = {
    "vector": spaces.Box(-5.0, 5.0, (3,), np.float32),
    "discrete": spaces.Discrete(7),
    "dict": spaces.Dict(
        {"place": spaces.Discrete(4), "seen": spaces.Box(-1, 1, (2, 2), np.float32), "kind": spaces.Tuple(
            (spaces.MultiDiscrete([2, 3]), spaces.Box(0, 1, (1,), np.float32))
        )}
    ),
    "frame": spaces.Box(0, 255, (6, 6, 1), np.uint8),
}  # fmt: skip


class Sees(MultiAgentEnv):
    """Two agents that see random elements of a space; episodes of five steps."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.agents = self.possible_agents = ["a", "b"]
        space = OBSERVATIONS[(config or {}).get("sees", "vector")]
        self.observation_spaces = {agent: space for agent in self.agents}
        self.action_spaces = dict.fromkeys(self.agents, spaces.Discrete(3))
        self._length = (config or {}).get("length", 5)
        space.seed(1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._time = 0
        return self._look(), {}

    def step(self, action_dict: Any) -> Any:
        self._time += 1
        rewards = dict.fromkeys(self.agents, float(self._time))
        return self._look(), rewards, {"__all__": False}, {"__all__": self._time == self._length}, {}

    def _look(self) -> Any:
        return {agent: self.observation_spaces[agent].sample() for agent in self.agents}


def boxes(space: Any, width: Any) -> spaces.Dict:
    return spaces.Dict(
        {a: spaces.Box(-np.inf, np.inf, (width(s),), np.float32) for a, s in space.spaces.items()}
    )


class Scale(SingleAgentObservationPreprocessor):
    """Writes into the episode, and in place."""

    def preprocess(self, observation: Any, episode: Any) -> Any:
        observation *= 0.5
        return observation


class Differences(MultiAgentObservationPreprocessor):
    """What the others see, beside what oneself sees."""

    def recompute_output_observation_space(self, observations: Any, actions: Any) -> Any:
        return boxes(observations, lambda s: 2 * s.shape[0])

    def preprocess(self, observations: Any, episode: Any) -> Any:
        mean = np.mean(list(observations.values()), axis=0)
        return {a: np.concatenate([o, mean]).astype(np.float32) for a, o in observations.items()}


class Trace(ConnectorV2):
    """A decaying sum of what an agent has seen; it leaves the episode alone, and uses its buffer again."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._traces: dict[Any, Any] = {}

    def __call__(self, *, rl_module: Any, batch: Any, episodes: Any, **kwargs: Any) -> Any:
        for own in self.single_agent_episode_iterator(episodes):
            trace = self._traces.setdefault(
                (own.multi_agent_episode_id, own.agent_id), np.zeros(3, np.float32)
            )
            trace *= 0.5
            trace += own.get_observations(-1)[:3]
            self.add_batch_item(batch, Columns.OBS, trace, own)
        return batch

    def recompute_output_observation_space(self, observations: Any, actions: Any) -> Any:
        return boxes(observations, lambda _: 3)


def flatten() -> Any:
    return FlattenObservations(multi_agent=True)


TRAIN: dict[str, tuple[str, Any, tuple[int, ...]]] = {
    "RLlib's flattening of numbers": ("discrete", flatten, (7,)),
    "RLlib's flattening of dicts": ("dict", flatten, (14,)),
    "previous actions and rewards": (
        "vector",
        lambda: [PrevActionsPrevRewards(multi_agent=True, n_prev_rewards=2), flatten()],
        (8,),
    ),
    "RLlib's frame stacking": (
        "frame",
        lambda: FrameStackingEnvToModule(num_frames=3, multi_agent=True),
        (6, 6, 3),
    ),
    "RLlib's filter": ("vector", lambda: MeanStdFilter(multi_agent=True), (3,)),
    "own, writes into episodes": ("vector", Scale, (3,)),
    "own, of all agents": ("vector", Differences, (6,)),
    "own, writes nothing": ("vector", Trace, (3,)),
    "several": ("dict", lambda: [flatten(), MeanStdFilter(multi_agent=True), Trace()], (3,)),
}


def config(env: Any, connectors: Any, kind: Any = HAPPOConfig, **env_config: Any) -> Any:
    return (
        kind()
        .environment(env, env_config=env_config, disable_env_checking=True)
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=2,
            env_to_module_connector=lambda env, spaces, device: connectors(),
        )
        .rl_module(model_config={"fcnet_hiddens": [8], "head_gain": 1.0})
        .debugging(seed=0)
    )


def sampled(made: Any, steps: int = 2 * 13) -> tuple[Any, list[Any]]:
    """The env runner, and the fragments of two calls: episodes are cut in their middle."""
    made.validate()
    assert made.env_runner_cls is MultiAgentEnvRunner
    runner = MultiAgentEnvRunner(config=made)
    return runner, [*runner.sample(num_timesteps=steps), *runner.sample(num_timesteps=steps)]


def gap(made: Any, runner: Any, fragments: Any) -> float:
    """How far the learner's log-probabilities are from the sampler's."""
    columns = JointBatchConnector(made.team, "mean", "cpu", "x")(
        rl_module=None, batch={}, episodes=list(fragments)
    )
    trained: Any = made.get_multi_rl_module_spec().build()
    for name, module in runner.module.items():
        trained[name].set_state(module.get_state())
    gaps = []
    for name in made.team.members():
        policy: Any = ModulePolicy(trained[name], columns[name], [], None)  # pyright: ignore[reportArgumentType]
        with torch.no_grad():
            found = policy.evaluate(slice(None)).log_prob
        gaps.append(float((found - policy.behaviour_logp)[policy.active].abs().max()))
    return max(gaps)


@pytest.mark.parametrize("what", TRAIN)
def test_the_learner_reads_what_policies_saw(what: str) -> None:
    sees, connectors, shape = TRAIN[what]
    made = config(Sees, connectors, sees=sees)
    runner, samples = sampled(made)
    assert {space.shape for space in made.team.observation_spaces.values()} == {shape}
    assert state_size(made.team) == 2 * (int(np.prod(shape)) + 1), "the critic's state is of the same"
    fragments = as_fragments(samples, made)
    assert {f.env_t for f in fragments} > {0}, "some begin in the middle of an episode"
    for fragment in fragments:
        assert fragment.obs["a"].shape == (len(fragment) + 1, *shape)
    assert gap(made, runner, fragments) < 1e-5
    rolled = [tree_shifted(f) for f in fragments]
    assert gap(made, runner, rolled) > 1e-3, "control: what it saw a step before is something else"
    follow_each_other(fragments)


def tree_shifted(fragment: Any) -> Any:
    obs = {a: tree.map_structure(lambda x: np.roll(x, 1, axis=0), o) for a, o in fragment.obs.items()}
    return type(fragment)(**{**vars(fragment), "obs": obs})


def follow_each_other(fragments: Any) -> None:
    """What follows a fragment's last step is what the next one begins with."""
    begins = {(f.episode_id, f.env_t): f for f in fragments}
    joints = 0
    for fragment in fragments:
        after = begins.get((fragment.episode_id, fragment.env_t + len(fragment)))
        if after is not None:
            joints += 1
            np.testing.assert_array_equal(fragment.obs["a"][-1], after.obs["a"][0])
    assert joints


def test_control_what_the_episode_holds_is_not_what_policies_saw() -> None:
    made = config(Sees, Trace)
    runner, samples = sampled(made)
    for episode in samples:
        del episode.custom_data[SEEN]
    assert gap(made, runner, as_fragments(samples, made)) > 1e-2


@pytest.mark.parametrize("connectors", [Scale, Trace])
@pytest.mark.parametrize(
    "script",
    [
        {"end": "terminated", "deaths": {"scout": 2}},
        {"end": "both", "joins": {"anchor": 1}, "deaths": {"anchor": 3}},
        {"skips": {"carrier": (2, 4)}},
    ],
    ids=["a death", "one joins", "one is not observed"],
)
@pytest.mark.parametrize("kind", [ScriptedMultiAgentEnv, ScriptedParallelEnv])
def test_agents_come_and_go(kind: Any, script: dict[str, Any], connectors: Any) -> None:
    if kind is ScriptedParallelEnv and "skips" in script:
        pytest.skip("PettingZoo's agents are always observed")
    made = config(f"fake_envs:{kind.__name__}", connectors, **script)
    made.training(team_reward="mean").env_runners(batch_mode="complete_episodes")
    made.validate()
    runner = MultiAgentEnvRunner(config=made)
    fragments = as_fragments(runner.sample(num_episodes=6), made)
    assert not all(f.active[a].all() for f in fragments for a in f.active)
    assert gap(made, runner, fragments) < 1e-5


@pytest.mark.parametrize("kind", [IPPOConfig, LoRASAConfig])
@pytest.mark.parametrize("recurrent", [False, True])
def test_other_algorithms_see_through_connectors_too(kind: Any, recurrent: bool) -> None:
    made = config(Sees, flatten, kind, sees="dict")
    made.rl_module(model_config={"fcnet_hiddens": [8], "use_gru": recurrent})
    runner, samples = sampled(made)
    fragments = as_fragments(samples, made)
    assert fragments[0].obs["a"].shape[1:] == (14,)
    assert any(f.actor_state for f in fragments) == recurrent
    if not recurrent:
        assert gap(made, runner, fragments) < 1e-5


def test_spaces_that_connectors_make_equal_can_share_a_policy() -> None:
    class Pad(SingleAgentObservationPreprocessor):
        def recompute_output_observation_space(self, observations: Any, actions: Any) -> Any:
            return boxes(observations, lambda _: 5)

        def preprocess(self, observation: Any, episode: Any) -> Any:
            return np.pad(np.float32(observation), (0, 5 - len(observation)))

    def shared(connectors: Any) -> Any:
        register_env("observers", lambda _: Observers())
        made = config("observers", connectors)
        return made.multi_agent(policy_mapping_fn=lambda agent, episode: "all")

    runner, samples = sampled(made := shared(Pad))
    assert gap(made, runner, as_fragments(samples, made)) < 1e-5
    with pytest.raises(ValueError, match="different observation spaces"):
        shared(Scale).validate()


class Observers(Sees):
    """Agents that see vectors of unequal length."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_spaces = {
            a: spaces.Box(-1, 1, (n,), np.float32) for a, n in zip(self.agents, (3, 5), strict=True)
        }


class Undeclared(SingleAgentObservationPreprocessor):
    """Changes observations, but not their space."""

    def preprocess(self, observation: Any, episode: Any) -> Any:
        return np.append(observation, np.float32(0))


class Column(ConnectorV2):
    def __call__(self, *, batch: Any, episodes: Any, **kwargs: Any) -> Any:
        for own in self.single_agent_episode_iterator(episodes):
            self.add_batch_item(batch, "goal", np.zeros(2), own)
        return batch


class Twice(ConnectorV2):
    def __call__(self, *, batch: Any, episodes: Any, **kwargs: Any) -> Any:
        for own in self.single_agent_episode_iterator(episodes):
            for _ in range(2):
                self.add_batch_item(batch, Columns.OBS, own.get_observations(-1), own)
        return batch


class Breaks(ConnectorV2):
    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        raise KeyError("goal")


REFUSED: dict[str, tuple[str, Any, str]] = {
    "undeclared": (
        "vector",
        Undeclared,
        r"'[ab]' an array of shape \(4,\), but.*recompute_output",
    ),
    "a dict that is none": ("dict", Scale, r"does not fit this environment's agents, TypeError"),
    "a column": ("vector", Column, r"adds 'goal' to the batch.*into the observation"),
    "two at once": ("vector", Twice, r"'[ab]' 2 observations for one step"),
    "an error": ("vector", Breaks, r"env_to_module_connector: .*KeyError: 'goal'"),
    "for one agent": ("discrete", FlattenObservations, r"multi_agent=True"),
    "one agent's filter": ("vector", MeanStdFilter, r"multi_agent=True"),
    "no connector": ("vector", lambda: 7, r"must return a ConnectorV2"),
    "boxes only": ("dict", lambda: FrameStackingEnvToModule(multi_agent=True), r"AssertionError"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_learnt_from_is_refused_when_built(what: str) -> None:
    sees, connectors, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        config(Sees, connectors, sees=sees).validate()


def test_a_pipeline_without_rllibs_own_pieces_is_refused() -> None:
    made = config(Sees, Scale).env_runners(add_default_connectors_to_env_to_module_pipeline=False)
    with pytest.raises(ValueError, match=r"what policies see cannot be recorded.*pipeline=True"):
        made.validate()


def test_control_without_connectors_nothing_is_recorded() -> None:
    made = HAPPOConfig().environment(Sees).env_runners(num_env_runners=0, env_runner_cls=MultiAgentEnvRunner)
    made.validate()
    (episode, *_) = MultiAgentEnvRunner(config=made).sample(num_timesteps=4)
    assert SEEN not in episode.custom_data


def test_forbidden_actions_that_connectors_hide_are_said(caplog: pytest.LogCaptureFixture) -> None:
    from spaces_env import SpacesEnv

    register_env("masked", lambda config: SpacesEnv(("discrete",), masks="obs"))
    config("masked", flatten).validate()
    assert "no `action_mask`" in caplog.text
