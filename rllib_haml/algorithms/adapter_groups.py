"""Which adapter an agent has: its own, its role's, or that of a group."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rllib_haml._typing import AgentID
from rllib_haml.algorithms.team_config import policy_of_agent

AdapterMapping = Literal["agent", "role"] | dict[str, list[Any]] | Callable[..., str]


def policy_of_role(agent_id: AgentID, episode: Any = None, **kwargs: Any) -> str:
    """The name without its trailing number, as PettingZoo names roles: `adversary_0` → `adversary`."""
    name = str(agent_id)
    return re.sub(r"_?\d+$", "", name) or name


@dataclass(frozen=True)
class PolicyOfGroup:
    """Each agent's group, as RLlib's `policy_mapping_fn` says it; equal groups are equal functions."""

    groups: tuple[tuple[str, tuple[AgentID, ...]], ...]

    def __call__(self, agent_id: AgentID, episode: Any = None, **kwargs: Any) -> str:
        return next(name for name, agents in self.groups if agent_id in agents)


def adapter_mapping(given: Any) -> Callable[..., Any]:
    """The policy mapping function that `adapter_mapping_fn` stands for.

    Raises:
        ValueError: It stands for none.
    """
    if given == "agent":
        return policy_of_agent
    if given == "role":
        return policy_of_role
    if isinstance(given, dict):
        return PolicyOfGroup(tuple((str(name), tuple(agents)) for name, agents in given.items()))
    try:
        function = pkgutil.resolve_name(given) if isinstance(given, str) else given
    except (ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"{_expected(given)} It cannot be imported: {error}") from error
    if not callable(function):
        raise ValueError(_expected(given))
    return function


def check_groups(given: Any, agents: Sequence[AgentID]) -> None:
    """Looks whether the groups divide the team.

    Raises:
        ValueError: Not every one of `agents` is in exactly one.
    """
    if isinstance(given, dict):
        listed = [agent for members in given.values() for agent in members]
        wrong = {
            "in no group": [agent for agent in agents if agent not in listed],
            "in several": [agent for agent in agents if listed.count(agent) > 1],
            "not in this environment": sorted({str(a) for a in listed if a not in agents}),
        }
        if any(wrong.values()):
            said = "; ".join(f"{what}: {', '.join(map(str, who))}" for what, who in wrong.items() if who)
            raise ValueError(
                f"adapter_mapping_fn: expected each agent in exactly one group ({said}). The agents are "
                f"{', '.join(map(str, agents))}."
            )


def _expected(given: Any) -> str:
    return (
        f"adapter_mapping_fn={given!r}: expected 'agent', 'role', groups {{name: [agents]}}, or a function "
        f"(agent_id, episode, **kwargs) -> name, given itself or by its import path (my_package.my_module:f)."
    )
