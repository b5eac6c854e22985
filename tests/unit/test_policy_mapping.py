"""Who follows which policy is decided once, by the agent alone, and under names that nothing else has."""

from __future__ import annotations

import itertools
import random
from typing import Any

import cloudpickle
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner

from rllib_haml import HAPPO, HAPPOConfig, HATRPOConfig, IPPOConfig, LoRASAConfig, MAPPOConfig
from rllib_haml.sampling.from_episodes import as_fragments
from rllib_haml.sampling.joint_env_runner import JointEnvRunner
from rllib_haml.sampling.policy_mapping import DecidedMapping, decide

AGENTS = ("a", "b", "c", "d")


class Equals(MultiAgentEnv):
    """Agents of whatever names, with equal spaces."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.agents = self.possible_agents = list((config or {}).get("agents", AGENTS))
        self.observation_spaces = dict.fromkeys(self.agents, Box(-1, 1, (2,), np.float32))
        self.action_spaces = dict.fromkeys(self.agents, Discrete(3))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return dict.fromkeys(self.agents, np.zeros(2, np.float32)), {}

    def step(self, action_dict: Any) -> Any:
        obs = dict.fromkeys(self.agents, np.zeros(2, np.float32))
        return obs, dict.fromkeys(self.agents, 1.0), {"__all__": False}, {"__all__": False}, {}


def config(mapping: Any = None, kind: Any = HAPPOConfig, agents: Any = AGENTS, **multi_agent: Any) -> Any:
    made = kind().environment(Equals, env_config={"agents": list(agents)}).env_runners(num_env_runners=0)
    return made.multi_agent(policy_mapping_fn=mapping, **multi_agent) if mapping else made


def pairs(agent: Any, episode: Any = None, **kwargs: Any) -> str:
    return "left" if agent in ("a", "b") else "right"


class Counts:
    def __init__(self) -> None:
        self.calls = itertools.count()

    def __call__(self, agent: Any, episode: Any, **kwargs: Any) -> str:
        return f"p{next(self.calls) % 2}"


class OncePerEpisode:
    """A draw that is kept for as long as the episode lasts."""

    def __init__(self) -> None:
        self.drawn: dict[Any, str] = {}

    def __call__(self, agent: Any, episode: Any = None) -> str:
        key = getattr(episode, "id_", None), agent
        return self.drawn.setdefault(key, random.choice(["x", "y"]))


NO_FUNCTIONS_OF_THE_AGENT: dict[str, Any] = {
    "a draw": lambda agent, episode, **kwargs: random.choice(["x", "y"]),
    "numpy's draw": lambda agent, episode: ["x", "y"][np.random.randint(2)],
    "a draw of one agent's": lambda agent, episode: random.choice("xy") if agent == "d" else "x",
    "a counter": Counts(),
    "a draw per episode": OncePerEpisode(),
    "the episode's id": lambda agent, episode: "x" if episode is None or hash(episode.id_) % 2 else "y",
    "not without an episode": lambda agent, episode: f"p{len(episode.id_) % 2}",
    "not with one": lambda agent, episode: "x" if episode is None else episode.custom_data["side"],
}


@pytest.mark.parametrize("kind", [HAPPOConfig, LoRASAConfig])
@pytest.mark.parametrize("what", NO_FUNCTIONS_OF_THE_AGENT)
def test_what_depends_on_more_than_the_agent_is_refused_by_name(what: str, kind: Any) -> None:
    mapping = NO_FUNCTIONS_OF_THE_AGENT[what]
    with pytest.raises(ValueError, match=r"policy_mapping_fn.*'[abcd]'.*depends on the agent alone"):
        config(mapping, kind, policies={"x", "y", "p0", "p1"}).validate()


def test_a_draw_of_an_adapter_is_refused_under_its_own_key() -> None:
    drawn = (
        LoRASAConfig().environment(Equals).training(adapter_mapping_fn=NO_FUNCTIONS_OF_THE_AGENT["a draw"])
    )
    with pytest.raises(ValueError, match=r"^adapter_mapping_fn.*depends on the agent alone"):
        drawn.validate()


@pytest.mark.parametrize(
    "mapping, message",
    [
        (lambda agent, episode: 0, r"policy_mapping_fn\('a', episode=None\) gives 0, a int: expected"),
        (lambda agent, episode: None, r"gives None, a NoneType: expected the name"),
        (lambda agent, episode, worker, **kwargs: "x", r"'worker'.*there is no `worker` any more"),
        (lambda agent: "x", r"cannot be called.*\(agent_id, episode\)"),
        (lambda agent, episode: {}[agent], r"policy_mapping_fn\('a', episode=None\) raised KeyError"),
    ],
)
def test_what_names_no_policy_is_refused(mapping: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(mapping).validate()


@pytest.mark.parametrize("named", [pairs, lambda *_, **__: "left", lambda agent, *_: np.str_(pairs(agent))])
def test_control_a_function_of_the_agent_is_taken(named: Any) -> None:
    made = config(named)
    made.validate()
    assert made.team.module_of == {agent: named(agent, None) for agent in AGENTS}


def test_the_decided_table_is_what_everyone_reads() -> None:
    """A mapping that would say something else later, or elsewhere, is not asked again."""
    answers = dict(zip(AGENTS, "xyxy", strict=True))
    made = config(lambda agent, episode: answers[agent])
    made.validate()
    decided = dict(answers)
    answers.update(zip(AGENTS, "yxyx", strict=True))
    assert isinstance(made.policy_mapping_fn, DecidedMapping)
    assert {agent: made.policy_mapping_fn(agent, None) for agent in AGENTS} == decided
    runner = JointEnvRunner(config=made)
    assert dict(runner._team.module_of) == decided == dict(made.team.module_of)
    runner.stop()
    made.copy(copy_frozen=False).validate()
    assert dict(made.team.module_of) == decided, "validated again"


def test_the_table_travels_as_a_pickle_of_the_config() -> None:
    made = config(lambda agent, episode: f"p{hash(agent)}")  # says something else in every process
    made.validate()
    there = cloudpickle.loads(cloudpickle.dumps(made))
    assert there.policy_mapping_fn.module_of == made.team.module_of
    there.validate()
    assert there.policy_mapping_fn.module_of == made.team.module_of


def test_a_mapping_is_asked_again_where_the_team_changes() -> None:
    made = config(pairs)
    made.validate()
    made.environment(env_config={"agents": ["a", "z"]}).validate()
    assert made.team.module_of == {"a": "left", "z": "right"}
    made.multi_agent(policy_mapping_fn=lambda agent, *_: "left").validate()
    assert made.team.module_of == {"a": "left", "z": "left"}


def test_evaluation_may_map_otherwise_but_not_at_random() -> None:
    def evaluated(**changed: Any) -> Any:
        made = config(pairs).evaluation(evaluation_config=changed)
        made.validate()
        other = made.get_evaluation_config_object()
        other.validate()
        return other

    assert evaluated().policy_mapping_fn.module_of == {"a": "left", "b": "left", "c": "right", "d": "right"}
    swapped = evaluated(policy_mapping_fn=lambda agent, *_: "right" if pairs(agent) == "left" else "left")
    assert swapped.policy_mapping_fn.module_of == {"a": "right", "b": "right", "c": "left", "d": "left"}
    larger = evaluated(env_config={"agents": ["a", "b", "e"]})
    assert larger.policy_mapping_fn.module_of == {"a": "left", "b": "left", "e": "right"}
    with pytest.raises(ValueError, match="depends on the agent alone"):
        evaluated(policy_mapping_fn=lambda *_: random.choice(["left", "right"]))
    with pytest.raises(ValueError, match=r"names \['other'\], but `policies` are"):
        evaluated(policy_mapping_fn=lambda *_: "other")


def test_an_agent_that_was_never_declared_has_no_policy() -> None:
    mapping = DecidedMapping(decide(pairs, AGENTS, "policy_mapping_fn"), pairs)
    with pytest.raises(ValueError, match=r"agent 'stranger'.*\['a', 'b', 'c', 'd'\].*possible_agents"):
        mapping("stranger")


def test_policies_cannot_be_changed_in_a_running_algorithm() -> None:
    """RLlib's own way would hand env runners a mapping that learners know nothing of."""
    algo = object.__new__(HAPPO)
    with pytest.raises(ValueError, match=r"Cannot add module 'main_1': who follows which policy is decided"):
        algo.add_module("main_1", RLModuleSpec(), new_agent_to_module_mapping_fn=pairs)
    with pytest.raises(ValueError, match="Cannot remove module 'a'"):
        algo.remove_module("a", new_agent_to_module_mapping_fn=pairs)


def test_an_episode_that_somebody_else_mapped_is_refused() -> None:
    made = config(pairs).env_runners(env_runner_cls=MultiAgentEnvRunner)
    made.validate()
    runner = MultiAgentEnvRunner(config=made)
    assert as_fragments(runner.sample(num_timesteps=4), made), "control"
    made.multi_agent(policy_mapping_fn=lambda agent, episode: "right")
    runner.config = made
    episodes = runner.sample(num_timesteps=4, force_reset=True)
    with pytest.raises(ValueError, match=r"Agent 'a' followed the policy 'right'.*'left' was decided on"):
        as_fragments(episodes, made)


@pytest.mark.parametrize("mapping", [None, lambda agent, *_: f"of_{type(agent).__name__}"])
def test_agents_that_read_alike_are_refused(mapping: Any) -> None:
    with pytest.raises(ValueError, match=r"Agents 1 and '1' have the same name"):
        config(mapping, agents=[1, "1"]).validate()
    config(agents=[1, "2"]).validate()


@pytest.mark.parametrize("name", ["__all__", "__common__"])
def test_agents_with_names_of_rllibs_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"Agent '{name}' has a name of RLlib's own"):
        config(lambda *_: "one", agents=[name, "b"]).validate()


RESERVED = [
    (HAPPOConfig, "critic"),
    (HATRPOConfig, "critic"),
    (MAPPOConfig, "critic"),
    (IPPOConfig, "b_critic"),
    (LoRASAConfig, "critic"),
    (LoRASAConfig, "backbone"),
    (HAPPOConfig, "__all_modules__"),
    (HAPPOConfig, "__env__"),
    (HAPPOConfig, "obs"),
    (HAPPOConfig, "left/right"),
    (HAPPOConfig, "metadata.json"),
    (HAPPOConfig, "ends."),
    (HAPPOConfig, ""),
]


@pytest.mark.parametrize("kind, name", RESERVED)
def test_a_reserved_name_is_named_wherever_it_is_given(kind: Any, name: str) -> None:
    if not name.startswith("__"):  # those are no agent's either
        with pytest.raises(ValueError, match=rf"Policy '{name}' of agent '{name}' cannot be called so"):
            config(kind=kind, agents=[name, "b"]).validate()
    with pytest.raises(ValueError, match=rf"Policy '{name}' of agent 'a' cannot be called so"):
        config(lambda agent, *_: name if agent == "a" else "b", kind, agents=["a", "b"]).validate()
    specs = {name: RLModuleSpec()}
    with pytest.raises(ValueError, match=rf"Policy '{name}' cannot be called so"):
        config(kind=kind, agents=["a", "b"]).rl_module(
            rl_module_spec=MultiRLModuleSpec(rl_module_specs=specs)
        ).validate()


@pytest.mark.parametrize("kind, name", [(HAPPOConfig, "critic"), (LoRASAConfig, "backbone")])
def test_a_reserved_name_is_refused_among_policies_too(kind: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"Policy '{name}' cannot be called so"):
        config(lambda agent, *_: "x", kind, policies={"x", name}).validate()


@pytest.mark.parametrize(
    "kind, name",
    [(HAPPOConfig, "backbone"), (HAPPOConfig, "robot.1"), (LoRASAConfig, "shared"), (IPPOConfig, "t")],
)
def test_control_names_that_nothing_else_has_are_taken(kind: Any, name: str) -> None:
    made = config(kind=kind, agents=[name, "b"])
    made.validate()
    assert set(made.policies) == {name, "b"}


def test_a_critic_that_is_mapped_to_another_name_is_taken() -> None:
    made = config(lambda agent, *_: f"{agent}_policy", agents=["critic", "b"])
    made.validate()
    assert set(made.policies) == {"critic_policy", "b_policy"}
