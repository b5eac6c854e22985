"""An RLlib `MultiAgentEnv` as a `TeamEnv`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from rllib_haml._typing import AgentID
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.spaces import as_float32, box_state_space
from rllib_haml.sampling.team_env import (
    RESET,
    STEP,
    TimeStep,
    check_declared,
    declared_agents,
    declared_space,
    demand_observations,
    demand_rewards,
    demand_someone,
    has_own_state,
    unpacked,
)

_EVERYONE = "__all__"


class RLlibTeam:
    """Adapts `env`; see `TeamEnv`.

    As in RLlib, whoever gets an observation acts next, and the team's episode is over when
    `__all__` says so or when everyone who took part is done. Many environments set both flags on a
    time limit; that means truncation, unless an agent's info says `terminal: True`.
    """

    def __init__(self, env: MultiAgentEnv, agents: Sequence[AgentID] | None = None) -> None:
        """Args: `agents` replaces the order of `env.possible_agents` where that is not stable."""
        self.env = env
        self.name = type(env).__name__
        self.agents = declared_agents(self.name, agents or env.possible_agents)
        self.observation_spaces: dict[AgentID, gym.Space] = {}
        self.action_spaces: dict[AgentID, gym.Space] = {}
        for agent in self.agents:
            obs_space = declared_space(self.name, agent, env.get_observation_space, "observation")
            self.observation_spaces[agent] = as_float32(obs_space)
            self.action_spaces[agent] = declared_space(self.name, agent, env.get_action_space, "action")
        # An attribute `state` alone is somebody's private variable; with a space it is an offer.
        declared = getattr(env, "state_space", None)
        self.state_space = None if declared is None else box_state_space(declared)
        self.has_state = has_own_state(env)
        self._declared = frozenset(self.agents)
        self._flagged = self._declared | {_EVERYONE}
        self._acting: list[AgentID] = []
        self._seen: set[AgentID] = set()
        self._done: set[AgentID] = set()
        self._unpaid: set[AgentID] = set()  # acted, and may be rewarded when they are observed again

    def reset(self, seed: int | None) -> TimeStep:
        obs, infos = unpacked("reset", RESET, self.env.reset(seed=seed))
        check_declared(self._declared, obs, "an observation")
        demand_someone(obs)
        self._seen, self._done, self._unpaid = set(obs), set(), set()
        return TimeStep(obs, self._present(obs), {}, False, False, infos or {})

    def step(self, actions: dict[AgentID, Any]) -> TimeStep:
        returned = unpacked("step", STEP, self.env.step(actions))
        obs, rewards, terminateds, truncateds, infos = returned
        infos = infos or {}
        check_declared(self._declared, obs, "an observation")
        check_declared(self._declared, rewards, "a reward")
        check_declared(self._flagged, terminateds, "a terminated flag")
        check_declared(self._flagged, truncateds, "a truncated flag")
        if _EVERYONE not in terminateds and _EVERYONE not in truncateds:
            self._demand_flags({*terminateds, *truncateds})
        self._seen.update(obs)
        for flags in (terminateds, truncateds):
            self._done.update(agent for agent, flag in flags.items() if flag)
        terminated, truncated = self._team_end(terminateds, truncateds, infos)
        gone = self._done
        if terminated or truncated:
            gone = {a for a, flag in terminateds.items() if flag} if truncated else set()
        now = TimeStep(obs, self._present(obs, gone), rewards, terminated, truncated, infos)
        self._demand_last(actions, now, (terminateds, truncateds))
        return now

    def state(self) -> np.ndarray | None:
        return self.env.state()  # pyright: ignore[reportAttributeAccessIssue]

    def get_state(self) -> dict[str, Any]:
        env: Any = self.env
        return {
            "env": env.get_state(),
            "seen": set(self._seen),
            "done": set(self._done),
            "unpaid": set(self._unpaid),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        env: Any = self.env
        env.set_state(state["env"])
        self._seen, self._done = set(state["seen"]), set(state["done"])
        self._unpaid = set(state.get("unpaid", ()))  # older states have none

    def _present(self, obs: Mapping[AgentID, Any], gone: Collection[AgentID] = ()) -> Sequence[AgentID]:
        """Who got an observation and is not `gone`, in declared order."""
        present = [agent for agent in self.agents if agent in obs and agent not in gone]
        if present != self._acting:
            self._acting = present
        return self._acting

    def _demand_last(
        self, actions: Collection[AgentID], now: TimeStep, flags: tuple[Mapping[AgentID, Any], ...]
    ) -> None:
        """Who leaves gets nothing later: rewards of who acted, and what is seen of who was cut off."""
        terminateds, truncateds = flags
        self._unpaid.update(actions)
        self._unpaid.difference_update(now.rewards)
        over = now.terminated or now.truncated
        demand_rewards(self._unpaid if over else self._unpaid & self._done, now.rewards)
        if now.truncated or any(truncateds.values()):
            cut_off = [a for a in actions if (now.truncated or truncateds.get(a)) and not terminateds.get(a)]
            demand_observations(cut_off, now.obs)

    def _demand_flags(self, flagged: Collection[AgentID]) -> None:
        """Without `__all__`, whoever is not told about would be taken for one who goes on, for ever."""
        if not self._seen <= self._done.union(flagged):
            raise EnvironmentFault(
                "step() gave no end flag: neither '__all__' nor one for every agent in terminateds or "
                "truncateds; write {'__all__': False}"
            )

    def _team_end(
        self,
        terminateds: Mapping[AgentID, Any],
        truncateds: Mapping[AgentID, Any],
        infos: Mapping[AgentID, Any],
    ) -> tuple[bool, bool]:
        """(terminated, truncated) of the team, at most one of them True."""
        truncated = bool(truncateds.get(_EVERYONE))
        terminated = bool(terminateds.get(_EVERYONE))
        if not (terminated or truncated) and self._seen <= self._done:
            truncated = any(flag and not terminateds.get(agent) for agent, flag in truncateds.items())
            return not truncated, truncated
        if terminated and truncated:
            terminal = any(info.get("terminal") for info in infos.values() if info)
            return terminal, not terminal
        return terminated, truncated
