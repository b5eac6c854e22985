"""The states of recurrent policies while their teams play."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tree

from rllib_haml._typing import AgentID


class ActorStates:
    """The recurrent states of E teams' policies; without such policies it is empty and costs nothing.

    A state begins anew with its team's episode, and stays as it is while its agent is absent.

    Args:
        initial: Per agent with a recurrent policy its state at an episode's start, a tree of arrays.
        agents: All of the team, as the columns of `active` have them.
        num_envs: E.

    Attributes:
        now: Per agent a tree of arrays (E, ...).
    """

    def __init__(self, initial: Mapping[AgentID, Any], agents: Sequence[AgentID], num_envs: int):
        def repeated(x: np.ndarray) -> np.ndarray:
            return np.repeat(np.asarray(x)[None], num_envs, axis=0)

        self._columns = {agent: agents.index(agent) for agent in initial}
        self._initial = {agent: tree.map_structure(repeated, state) for agent, state in initial.items()}
        self.now: dict[AgentID, Any] = _copied(self._initial)
        self.begin_fragments()

    def begin_fragments(self) -> None:
        """Every sub-environment's next fragment begins with the states of now."""
        self._before = _copied(self.now)

    def restart(self, rows: Sequence[int]) -> None:
        """These sub-environments begin an episode, and with it a fragment."""

        def write(x: np.ndarray, initial: np.ndarray) -> None:
            x[rows] = initial[rows]

        for states in (self.now, self._before):
            tree.map_structure(write, states, self._initial)

    def advance(self, after: Mapping[AgentID, Any], active: np.ndarray) -> None:
        """Takes the states after a joint step.

        Args:
            after: Per agent a tree of arrays (E, ...).
            active: (E, N) bool, who acted in that step.
        """
        for agent, column in self._columns.items():
            acted = active[:, column]

            def moved(x: np.ndarray, new: np.ndarray, acted: np.ndarray = acted) -> np.ndarray:
                return np.where(acted.reshape(-1, *[1] * (x.ndim - 1)), new, x)

            self.now[agent] = tree.map_structure(moved, self.now[agent], after[agent])

    def before_fragment(self, e: int) -> dict[AgentID, Any]:
        """The states with which sub-environment e's fragment began."""
        return {a: tree.map_structure(lambda x: x[e].copy(), state) for a, state in self._before.items()}


def _copied(states: Mapping[AgentID, Any]) -> dict[AgentID, Any]:
    return {agent: tree.map_structure(np.copy, state) for agent, state in states.items()}
