"""Which policy each agent follows: asked once, then a table that goes wherever the config goes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.rllib.core import Columns
from ray.rllib.core.rl_module import validate_module_id
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode

from rllib_haml._typing import AgentID

# So often each agent is asked: a draw between two policies agrees with itself once in 2^32 times.
QUESTIONS = 33
# Files of a checkpoint that stand beside the policies' directories.
_FILES = ("metadata.json", "class_and_ctor_args.pkl", "module_state.pkl", "module_state.msgpack")
# RLlib tells a batch's columns from its modules by name.
_COLUMNS = (Columns.OBS, Columns.STATE_IN)


@dataclass(frozen=True)
class DecidedMapping:
    """Answers as RLlib's `policy_mapping_fn` does, from a table: alike in every process, for the whole run.

    Attributes:
        module_of: Each agent's policy.
        given: The user's own function that was asked; None, where the algorithm's default was.
    """

    module_of: Mapping[AgentID, str]
    given: Callable[..., Any] | None = None

    def __call__(self, agent_id: AgentID, episode: Any = None, **kwargs: Any) -> str:
        if agent_id not in self.module_of:
            raise ValueError(
                f"No policy was decided on for agent {agent_id!r}: policies were mapped to the agents that "
                f"the environment declares, {list(self.module_of)}. Put it into `possible_agents`, in every "
                f"copy of the environment."
            )
        return self.module_of[agent_id]


def decide(mapping: Callable[..., Any], agents: Sequence[AgentID], key: str) -> dict[AgentID, str]:
    """Asks `mapping` for each agent's policy, often enough to see whether it says the same every time.

    Args:
        mapping: RLlib's `policy_mapping_fn`.
        key: Of the config, that `mapping` stands under.

    Raises:
        ValueError: It cannot be called, names no policy, or depends on more than the agent.
    """
    _check_signature(mapping, key)
    episodes = [None, *(MultiAgentEpisode() for _ in range(QUESTIONS - 1))]
    return {agent: _one_answer(mapping, agent, episodes, key) for agent in agents}


def _check_signature(mapping: Callable[..., Any], key: str) -> None:
    try:
        inspect.signature(mapping).bind("agent", None)
    except TypeError as error:
        raise ValueError(
            f"{key}={_name(mapping)} cannot be called as RLlib's new API stack calls it, with (agent_id, "
            f"episode): {error}. Write `def mapping(agent_id, episode, **kwargs)`; there is no `worker` "
            f"any more."
        ) from error
    except ValueError:  # built in: it cannot be asked what it takes
        return


def _one_answer(mapping: Callable[..., Any], agent: AgentID, episodes: Sequence[Any], key: str) -> str:
    asked, answers = f"{key}({agent!r}, episode=None)", list[Any]()
    for episode in episodes:
        try:
            answers.append(mapping(agent, episode))
        except Exception as error:
            asked = asked if episode is None else f"{key}({agent!r}, <a new episode>)"
            raise ValueError(f"{asked} raised {error!r}: {_EXPECTED}") from error
        if not isinstance(answers[-1], str):
            raise ValueError(
                f"{asked} gives {answers[-1]!r}, a {type(answers[-1]).__name__}: expected the name of the "
                f"agent's policy, a string."
            )
        if answers[-1] != answers[0]:
            raise ValueError(
                f"{key}={_name(mapping)} gives agent {agent!r} the policy {answers[0]!r} once and "
                f"{answers[-1]!r} another time: {_EXPECTED}"
            )
    return str(answers[0])


_EXPECTED = (
    "here an agent's policy depends on the agent alone, for the whole training (not on the episode, a "
    "counter or a draw), such as `lambda agent_id, episode, **kwargs: str(agent_id)`."
)


def _name(mapping: Any) -> str:
    return getattr(mapping, "__qualname__", None) or repr(mapping)


def check_agents(agents: Sequence[AgentID]) -> None:
    """Looks whether agents can be told apart by what they are called.

    Raises:
        ValueError: Two are the same name to everyone who reads it as text, or one is a word of RLlib's.
    """
    told: dict[str, AgentID] = {}
    for agent in agents:
        other = told.setdefault(str(agent), agent)
        if other is not agent:
            raise ValueError(
                f"Agents {other!r} and {agent!r} have the same name, {str(agent)!r}, in metrics and as "
                f"policies: rename one of them in the environment."
            )
        if _is_rllibs(str(agent)):
            raise ValueError(
                f"Agent {agent!r} has a name of RLlib's own: rename it in the environment, without the "
                f"underscores around it."
            )


def check_policies(names: Iterable[Any], own: Iterable[str], followers: Mapping[AgentID, str]) -> None:
    """Looks whether policies have names that nothing else has, and that can be a directory's.

    Args:
        names: Of all policies, wherever they were named.
        own: Modules that the algorithm makes beside the policies.
        followers: Each agent's policy.

    Raises:
        ValueError: One has not; it says which, and who follows it.
    """
    taken = {name: "the algorithm's own module of this name" for name in own}
    taken |= dict.fromkeys(_FILES, "a file of every checkpoint")
    taken |= dict.fromkeys(_COLUMNS, "a column of every batch")
    for name in names:
        wrong = taken.get(name) or _no_directory(name)
        if wrong:
            agents = [agent for agent, policy in followers.items() if policy == name]
            whose = f" of agent {', '.join(map(repr, agents))}" if agents else ""
            raise ValueError(
                f"Policy {name!r}{whose} cannot be called so: that is {wrong}. Rename the agent, or map "
                f"it to another name: policy_mapping_fn=lambda agent_id, episode, **kwargs: "
                f"f'{{agent_id}}_policy'."
            )


def _no_directory(name: Any) -> str:
    """What keeps `name` from being a policy's, to which checkpoints give a directory; or nothing."""
    try:
        validate_module_id(name, error=True)
    except ValueError:
        return 'no text that can name a directory (none of <>:"/\\|? in it, no dot or space at its end)'
    return "a name of RLlib's own" if _is_rllibs(name) else ""


def _is_rllibs(name: str) -> bool:
    """As `__all__`, `__all_modules__`, `__common__` or `__env__` are."""
    return name.startswith("__") and name.endswith("__")
