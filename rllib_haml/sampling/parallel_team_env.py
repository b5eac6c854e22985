"""A PettingZoo `ParallelEnv` as an RLlib `MultiAgentEnv`, for RLlib's own env runner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pettingzoo import ParallelEnv
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.utils.typing import MultiAgentDict

from rllib_haml._typing import AgentID
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.pettingzoo_team import PettingZooTeam
from rllib_haml.sampling.spaces import assemble, leaves


class ParallelTeamEnv(MultiAgentEnv):
    """Presents `par_env` to RLlib without what RLlib's `ParallelPettingZooEnv` loses.

    Agents keep the environment's order; `agents` shrinks one step after they die, as RLlib demands
    that it hold everyone whom a step tells about. `state()` passes through, real-valued
    observations are float32, and a team whose last agents end in different ways ends. A time limit
    is told as `truncateds["__all__"]` alone: RLlib takes an episode whose agents are all done one
    by one for terminated, and would not bootstrap.

    Attributes:
        par_env: The environment inside.
        state_space: Space of `state()`, or None.
    """

    def __init__(self, par_env: ParallelEnv) -> None:
        self._team = PettingZooTeam(par_env)
        self.par_env = par_env
        self.possible_agents = list(self._team.agents)
        self.agents = list(self._team.agents)
        self._acting: list[AgentID] = []
        super().__init__()
        self.observation_spaces = self._team.observation_spaces
        self.action_spaces = self._team.action_spaces
        self.state_space = self._team.state_space
        self.render_mode = getattr(par_env, "render_mode", None)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[MultiAgentDict, MultiAgentDict]:
        now = self._team.reset(seed)
        self.agents = self._acting = list(now.acting)
        obs = {agent: self._cast(agent, now.obs[agent]) for agent in now.acting}
        return obs, self._infos(obs, now.infos)

    def step(
        self, action_dict: MultiAgentDict
    ) -> tuple[MultiAgentDict, MultiAgentDict, MultiAgentDict, MultiAgentDict, MultiAgentDict]:
        before = self._acting
        now = self._team.step(action_dict)
        obs = {
            agent: self._cast(agent, now.obs[agent])
            for agent in self._team.agents
            if agent in now.obs and (agent in before or agent in now.acting)
        }
        gone = [agent for agent in before if agent not in now.acting]
        terminateds: dict[AgentID, bool] = dict.fromkeys(gone, True)
        terminateds["__all__"] = now.terminated
        truncateds: dict[AgentID, bool] = {"__all__": now.truncated}
        self._acting = list(now.acting)
        self.agents = [a for a in self._team.agents if a in before or a in self._acting]
        rewards = {a: float(r) for a, r in now.rewards.items() if a in before or a in obs}
        return obs, rewards, terminateds, truncateds, self._infos(obs, now.infos)

    def state(self) -> np.ndarray | None:
        """The environment's global state, or None after a last step that destroyed it."""
        return self._team.state()

    def render(self) -> Any:
        return self.par_env.render()

    def close(self) -> None:
        self.par_env.close()

    def _infos(self, obs: MultiAgentDict, infos: Mapping[AgentID, Any]) -> MultiAgentDict:
        state = None if self.state_space is None else self.state()
        if state is None:
            return {agent: infos.get(agent, {}) for agent in obs}
        return {agent: {**infos.get(agent, {}), "state": state} for agent in obs}

    def _cast(self, agent: AgentID, obs: Any) -> Any:
        space = self._team.observation_spaces[agent]
        arrays = []
        for leaf in leaves(space):
            value = obs
            for key in leaf.path:
                value = value[key]
            if misfit := leaf.misfit(value):
                raise EnvironmentFault(f"its {misfit}", environment=self._team.name, agent=agent)
            arrays.append(np.asarray(value, leaf.dtype))
        return assemble(space, arrays)
