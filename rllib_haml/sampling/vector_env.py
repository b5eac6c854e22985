"""The one interface through which the fast sampler sees an environment: arrays over sub-environments.

E: sub-environments, N: agents, n_i: actions of agent i. Rows are sub-environments everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np

from rllib_haml._typing import AgentID


@dataclass
class TeamStep:
    """What E teams see after a `reset` or a `step`.

    The arrays may be the environment's own buffers, overwritten by its next call: copy what you keep.

    Attributes:
        obs: Per agent a tree of arrays (E, ...); rows of absent agents are zeros.
        active: (E, N) bool, in the order of `VectorTeamEnv.agents`: who acts next.
        reward: (E, N) float64, raw, one column per agent (0 for an absent one); zeros after `reset`.
        terminated: (E,) bool, the *team's* episode ended in a terminal state.
        truncated: (E,) bool, it was cut by a time limit: the last state has a value. Never both.
        action_mask: Per agent (E, n_i) bool, only for agents whose environment gives a mask.
        state: (E, *S) float32, the environment's global state, or None if it has none.
        outcome: Per name (E,) float64, what the episodes that have ended came to beside their return, for
            example {"win": ...}; NaN where that was not told. Rows that still run mean nothing.
    """

    obs: dict[AgentID, Any]
    active: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    action_mask: dict[AgentID, np.ndarray] = field(default_factory=dict)
    state: np.ndarray | None = None
    outcome: dict[str, np.ndarray] = field(default_factory=dict)

    def outcome_of(self, row: int) -> dict[str, float]:
        """The outcome of the episode that has ended in sub-environment `row`; {} while it runs."""
        if not (self.terminated[row] or self.truncated[row]):
            return {}
        told = {name: float(values[row]) for name, values in self.outcome.items()}
        return {name: value for name, value in told.items() if not math.isnan(value)}


@runtime_checkable
class VectorTeamEnv(Protocol):
    """E copies of one team's environment, stepped together.

    Attributes:
        num_envs: E.
        agents: All agents that can ever appear, in the environment's declared order.
        observation_spaces: One space per agent, nothing padded.
        action_spaces: One space per agent.
        state_space: Space of the global state, or None.
    """

    num_envs: int
    agents: tuple[AgentID, ...]
    observation_spaces: dict[AgentID, gym.Space]
    action_spaces: dict[AgentID, gym.Space]
    state_space: gym.Space | None

    def reset(self, rows: Sequence[int], seeds: Sequence[int | None]) -> TeamStep:
        """Starts new episodes in sub-environments `rows`; the other rows keep their present values.

        Never called by `step` itself: an ended episode stays at its last observation until it is reset.
        """
        ...

    def step(self, actions: Mapping[AgentID, Any]) -> TeamStep:
        """Steps all E sub-environments.

        Args:
            actions: Per agent a tree of arrays (E, ...) on the environment's own scale; rows of
                absent agents are ignored.
        """
        ...

    def close(self) -> None: ...
