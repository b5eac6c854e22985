"""A PettingZoo `ParallelEnv` as a `TeamEnv`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv

from rllib_haml._typing import AgentID
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

logger = logging.getLogger("rllib_haml")


class PettingZooTeam:
    """Adapts `env`; see `TeamEnv`.

    The team's episode is over when nobody is left. It was truncated if an agent of the last step
    was truncated without being terminated, else it terminated.
    """

    def __init__(self, env: ParallelEnv) -> None:
        self.env = env
        self.name = str(env)
        self.agents = declared_agents(self.name, getattr(env, "possible_agents", None))
        self.observation_spaces: dict[AgentID, gym.Space] = {}
        self.action_spaces: dict[AgentID, gym.Space] = {}
        for agent in self.agents:
            obs_space = declared_space(self.name, agent, env.observation_space, "observation")
            self.observation_spaces[agent] = as_float32(obs_space)
            self.action_spaces[agent] = declared_space(self.name, agent, env.action_space, "action")
        self.state_space = _state_space(env)
        self.has_state = has_own_state(env)
        self._declared = frozenset(self.agents)
        self._acting: list[AgentID] = []
        self._over = False

    def reset(self, seed: int | None) -> TimeStep:
        obs, infos = unpacked("reset", RESET, self.env.reset(seed=seed))
        check_declared(self._declared, obs, "an observation")
        self._over = False
        acting = self._alive(())
        demand_someone(acting)
        return TimeStep(obs, acting, {}, False, False, infos or {})

    def step(self, actions: dict[AgentID, Any]) -> TimeStep:
        returned = unpacked("step", STEP, self.env.step(actions))
        obs, rewards, terminations, truncations, infos = returned
        check_declared(self._declared, obs, "an observation")
        check_declared(self._declared, rewards, "a reward")
        check_declared(self._declared, terminations, "a termination flag")
        check_declared(self._declared, truncations, "a truncation flag")
        demand_rewards(actions, rewards)
        done: list[AgentID] = []
        if any(terminations.values()) or any(truncations.values()):
            done = [a for a in self.agents if terminations.get(a) or truncations.get(a)]
            demand_observations([a for a in actions if truncations.get(a) and not terminations.get(a)], obs)
        acting = self._alive(done)
        if acting:
            return TimeStep(obs, acting, rewards, False, False, infos)
        self._over = True
        truncated = any(truncations.get(a) and not terminations.get(a) for a in done if a in actions)
        final = [a for a in self.agents if a in obs and not (truncated and terminations.get(a))]
        return TimeStep(obs, final, rewards, not truncated, truncated, infos)

    def state(self) -> np.ndarray | None:
        try:
            return self.env.state()
        except Exception as error:
            if not self._over:
                raise
            # Some environments (multiwalker) take themselves apart in their last step.
            _tell_of_lost_state(type(self.env.unwrapped).__name__, type(error).__name__)
            return None

    def get_state(self) -> dict[str, Any]:
        env: Any = self.env
        return {"env": env.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        env: Any = self.env
        env.set_state(state["env"])

    def _alive(self, done: Sequence[AgentID]) -> Sequence[AgentID]:
        """Who the environment says is alive and is not `done`, in declared order."""
        live = self.env.agents
        if done:
            live = [agent for agent in live if agent not in done]
        if live != self._acting:
            check_declared(self._declared, dict.fromkeys(live), "a place among the living")
            self._acting = [agent for agent in self.agents if agent in live]
        return self._acting


@cache
def _tell_of_lost_state(environment: str, error: str) -> None:
    """Once, as it may come with every episode."""
    logger.warning(
        "%s.state() raises %s after the last step of an episode: the critic reads the state before it in its "
        "place.",
        environment,
        error,
    )


def _state_space(env: ParallelEnv) -> gym.spaces.Box | None:
    """The space of `env.state()`, declared or, where it is not, read off one state."""
    declared = getattr(env, "state_space", None)
    if declared is not None:
        return box_state_space(declared)
    if type(env).state is ParallelEnv.state:
        return None
    env.reset()
    try:
        state = np.asarray(env.state())
    except NotImplementedError:
        return None
    except AttributeError as error:
        # Conversions offer a `state()` that asks an inner environment without one; so does a broken one.
        logger.warning(
            "%s.state() raised %r: the critic reads the joint observation instead.", type(env).__name__, error
        )
        return None
    return gym.spaces.Box(-np.inf, np.inf, state.shape, np.float32)
