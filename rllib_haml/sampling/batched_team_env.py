"""A natively batched environment as an RLlib `MultiAgentEnv`, for RLlib's own env runner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tree
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.utils.typing import MultiAgentDict

from rllib_haml._typing import AgentID
from rllib_haml.sampling.outcomes import OUTCOME
from rllib_haml.sampling.spaces import zeros
from rllib_haml.sampling.vector_env import VectorTeamEnv


class BatchedTeamEnv(MultiAgentEnv):
    """One row of a batched environment; `make_vec` gives this package's sampler the whole batch.

    Nobody who left the team comes back before the next reset. A time limit is told as
    `truncateds["__all__"]` alone, and `state()` travels in the agents' infos, as `ParallelTeamEnv`
    does it; so does, in the last step, the episode's outcome.

    Args:
        make_vec: Makes a batch of that many sub-environments.

    Attributes:
        state_space: Space of `state()`, or None.
    """

    def __init__(self, make_vec: Callable[[int], VectorTeamEnv]) -> None:
        self.make_vec = make_vec
        self._row = make_vec(1)
        self.possible_agents = list(self._row.agents)
        self.agents = list(self._row.agents)
        super().__init__()
        self.observation_spaces = self._row.observation_spaces
        self.action_spaces = self._row.action_spaces
        self.state_space = self._row.state_space
        self._acting: list[AgentID] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[MultiAgentDict, MultiAgentDict]:
        self._step = self._row.reset([0], [seed])
        self.agents = self._acting = self._active()
        obs = self._observations(self._acting)
        return obs, self._infos(obs)

    def step(
        self, action_dict: MultiAgentDict
    ) -> tuple[MultiAgentDict, MultiAgentDict, MultiAgentDict, MultiAgentDict, MultiAgentDict]:
        before = self._acting
        self._step = self._row.step({a: self._batch(a, action_dict.get(a)) for a in self.possible_agents})
        self.agents, self._acting = before, self._active()
        rewards = dict(zip(self.possible_agents, self._step.reward[0].tolist(), strict=True))
        terminateds: dict[AgentID, bool] = {a: True for a in before if a not in self._acting}
        terminateds["__all__"] = bool(self._step.terminated[0])
        obs = self._observations(before)
        truncateds: dict[AgentID, bool] = {"__all__": bool(self._step.truncated[0])}
        return obs, {a: rewards[a] for a in before}, terminateds, truncateds, self._infos(obs)

    def state(self) -> np.ndarray | None:
        """The environment's global state, or None if it has none."""
        return None if self._step.state is None else self._step.state[0].copy()

    def close(self) -> None:
        self._row.close()

    def _active(self) -> list[AgentID]:
        return [a for a, active in zip(self.possible_agents, self._step.active[0], strict=True) if active]

    def _observations(self, agents: Sequence[AgentID]) -> MultiAgentDict:
        return {agent: tree.map_structure(_first, self._step.obs[agent]) for agent in agents}

    def _infos(self, obs: MultiAgentDict) -> MultiAgentDict:
        state = self.state()
        info: dict[str, Any] = {} if state is None else {"state": state}
        if outcome := self._step.outcome_of(0):
            info[OUTCOME] = outcome
        return {agent: dict(info) for agent in obs}

    def _batch(self, agent: AgentID, action: Any) -> Any:
        """(1, ...); zeros for an absent agent, whose action counts for nothing."""
        if action is None:
            return zeros(self._row.action_spaces[agent], 1)
        return tree.map_structure(lambda x: np.asarray(x)[None], action)


def _first(rows: np.ndarray) -> np.ndarray:
    return rows[0].copy()
