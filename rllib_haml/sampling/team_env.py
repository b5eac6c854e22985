"""One team's environment, one episode at a time: what each kind of environment is reduced to.

Who acts and how an episode ended is said differently by every interface. An adapter decides both
here, once, for the fast sampler and for RLlib's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Sized
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np

from rllib_haml._typing import AgentID
from rllib_haml.sampling.faults import EnvironmentFault


class TimeStep(NamedTuple):
    """What the team sees after a `reset` or a `step`.

    Attributes:
        obs: Observations as the environment gave them.
        acting: Who acts next, in declared order. After the last step: the agents whose final
            observation the critic reads to bootstrap, that is, everyone who has one, less those
            who terminated themselves while the team was merely cut off by a time limit. The same
            object for as long as the same agents act.
        rewards: Rewards as the environment gave them; empty after `reset`.
        terminated: The team's episode ended in a terminal state.
        truncated: It was cut by a time limit. Never both.
        infos: Infos per agent.
    """

    obs: Mapping[AgentID, Any]
    acting: Sequence[AgentID]
    rewards: Mapping[AgentID, Any]
    terminated: bool
    truncated: bool
    infos: Mapping[AgentID, Any]


class TeamEnv(Protocol):
    """One environment of one team; agents and spaces as in `VectorTeamEnv`."""

    name: str
    env: Any
    agents: tuple[AgentID, ...]
    observation_spaces: dict[AgentID, gym.Space]
    action_spaces: dict[AgentID, gym.Space]
    state_space: gym.spaces.Box | None
    has_state: bool

    def reset(self, seed: int | None) -> TimeStep:
        """Begins an episode, also in the middle of one; `seed` None goes on with the random numbers.

        Raises:
            EnvironmentFault: It returned something for an agent that it does not declare.
        """
        ...

    def step(self, actions: dict[AgentID, Any]) -> TimeStep:
        """Takes one joint step of an episode that is not over.

        Args:
            actions: Of exactly the agents that were `acting`, as their action spaces have them.

        Raises:
            EnvironmentFault: It returned something for an agent that it does not declare.
        """
        ...

    def state(self) -> np.ndarray | None:
        """The global state now, or None where the environment cannot tell it any more."""
        ...

    def get_state(self) -> dict[str, Any]:
        """All that `set_state` needs to continue the episode; only where `has_state`."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues the episode that `get_state` was called in; only where `has_state`."""
        ...


def has_own_state(env: Any) -> bool:
    """Whether the environment itself, not one that it wraps, can be saved and continued.

    Looked up on the type: wrappers that forward unknown attributes would offer the state of the
    environment inside and silently lose their own.
    """
    return hasattr(type(env), "get_state") and hasattr(type(env), "set_state")


def declared_agents(name: str, possible_agents: Sequence[AgentID] | None) -> tuple[AgentID, ...]:
    """The environment's agents in its own order.

    Raises:
        EnvironmentFault: It declares none, or one twice.
    """
    agents = tuple(possible_agents or ())
    if not agents:
        raise EnvironmentFault(
            "it declares no agents: set `possible_agents` to the list of all of them",
            environment=name,
        )
    for agent in agents:
        if agents.count(agent) > 1:
            raise EnvironmentFault(
                f"the agent appears {agents.count(agent)} times in possible_agents {list(agents)}",
                environment=name,
                agent=agent,
            )
    return agents


def declared_space(name: str, agent: AgentID, space_of: Callable[[Any], Any], kind: str) -> gym.Space:
    """The agent's space, if it has one.

    Raises:
        EnvironmentFault: The environment declares none of this `kind` for the agent.
    """
    try:
        space = space_of(agent)
    except KeyError as error:
        cause = f"it has no {kind} space: give every agent of possible_agents one"
        raise EnvironmentFault(cause, environment=name, agent=agent) from error
    if not isinstance(space, gym.Space):
        raise EnvironmentFault(
            f"its {kind} space is {space!r}, not a gymnasium.Space", environment=name, agent=agent
        )
    return space


RESET = ("observations", "infos")
STEP = ("observations", "rewards", "terminateds", "truncateds", "infos")


def unpacked(method: str, parts: tuple[str, ...], returned: Any) -> Any:
    """`returned` by `reset` or `step`, once it is known to have `parts`, each a dict by agent.

    Infos may be None.

    Raises:
        EnvironmentFault: It has not.
    """
    if not isinstance(returned, (tuple, list)) or len(returned) != len(parts):
        size = f" of {len(returned)}" if isinstance(returned, Sized) else ""
        given = "None" if returned is None else f"a {type(returned).__name__}{size}"
        must = "must return" if method == "reset" else "expected"
        raise EnvironmentFault(f"{method}() returned {given}, {must} ({', '.join(parts)})")
    for part, value in zip(parts, returned, strict=True):
        # The first question is the cheap one, and nearly always enough.
        if type(value) is dict or isinstance(value, Mapping) or (value is None and part == "infos"):
            continue
        raise EnvironmentFault(
            f"{method}() returned {value!r:.60} as {part}, expected a dict with an entry for each agent"
        )
    return returned


def check_declared(agents: frozenset[AgentID], returned: Mapping[AgentID, Any], entry: str) -> None:
    """Raises an `EnvironmentFault` if `returned` has an agent that was never declared."""
    if not returned.keys() <= agents:
        stranger = next(agent for agent in returned if agent not in agents)
        declared = sorted((agent for agent in agents if agent != "__all__"), key=str)
        raise EnvironmentFault(
            f"it returned {entry} for an agent that possible_agents does not declare; it declares {declared}",
            agent=stranger,
        )


def demand_someone(acting: Collection[AgentID]) -> None:
    """Raises an `EnvironmentFault` if a reset leaves nobody to act."""
    if not acting:
        raise EnvironmentFault("reset returned no observation, so nobody acts")


def demand_rewards(acted: Iterable[AgentID], rewards: Mapping[AgentID, Any]) -> None:
    """Raises an `EnvironmentFault` if one of those who `acted` has no reward, and will have none."""
    for agent in acted:
        if agent not in rewards:
            raise EnvironmentFault(
                "it acted but got no reward: return one for everyone who acted, also in the last step",
                agent=agent,
            )


def demand_observations(truncated: Iterable[AgentID], obs: Mapping[AgentID, Any]) -> None:
    """Raises an `EnvironmentFault` if an agent that was cut off is not shown what its state was worth."""
    for agent in truncated:
        if agent not in obs:
            raise EnvironmentFault(
                "it was truncated without a last observation, which tells what the state was still worth: "
                "return one for everyone who acted",
                agent=agent,
            )
