"""A few random steps in an experiment's environment: what training would stumble over, it stumbles over."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from ray.rllib.env.env_context import EnvContext

from rllib_haml.algorithms.team_config import TeamConfig
from rllib_haml.envs.registry import resolve_env
from rllib_haml.sampling.actions import ToEnvActions
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.finite import check_finite
from rllib_haml.sampling.make_vector import make_vector_team_env
from rllib_haml.sampling.masks import MaskCheck
from rllib_haml.sampling.random_actions import uniform_actions
from rllib_haml.sampling.team import TeamReward, UnequalRewards, team_reward
from rllib_haml.sampling.vector_env import TeamStep, VectorTeamEnv

STEPS = 20
LIMIT_S = 20.0


def fault_in(config: TeamConfig) -> str | None:
    """What is wrong with the environment of `config`: makes, resets and steps it, with the sampler's checks.

    Returns:
        None if nothing was found, or it was slower than `LIMIT_S` for all of it.
    """
    try:
        with _within(LIMIT_S):
            creator = partial(resolve_env(config.env), EnvContext(config.env_config, worker_index=0))
            env = make_vector_team_env(creator, 1)
            try:
                _Tryout(env, config).play(STEPS)
            finally:
                env.close()
    except _OutOfTime:
        return None
    except EnvironmentFault as fault:
        return str(fault)
    except Exception as error:
        return f"the environment raised {error!r}."
    return None


class _Tryout:
    """Plays one sub-environment `env` as the sampler of `config` would."""

    def __init__(self, env: VectorTeamEnv, config: TeamConfig) -> None:
        self._env, self._name = env, str(config.env)
        self._rule: TeamReward = config.team_reward
        self._normalize, clip = bool(config.normalize_actions), bool(config.clip_actions)
        self._scale = ToEnvActions(env.action_spaces, normalize=self._normalize, clip=clip)
        self._check_masks = MaskCheck(env.action_spaces)
        self._rng = np.random.default_rng(0)
        self._time = np.zeros(1, int)

    def play(self, steps: int) -> None:
        """Raises an EnvironmentFault at the first thing that is wrong."""
        now = self._reset()
        for _ in range(steps):
            acted, self._time = now.active.copy(), self._time + 1
            now = self._checked(self._env.step(self._scale(self._actions(now.action_mask))))
            self._check_rewards(now.reward, acted)
            if now.terminated[0] or now.truncated[0]:
                now = self._reset()

    def _reset(self) -> TeamStep:
        self._time[:] = 0
        return self._checked(self._env.reset([0], [None]))

    def _actions(self, masks: Mapping[Any, np.ndarray]) -> dict[Any, Any]:
        return {
            agent: uniform_actions(space, 1, masks.get(agent), self._rng, normalize=self._normalize)
            for agent, space in self._env.action_spaces.items()
        }

    def _checked(self, now: TeamStep) -> TeamStep:
        check_finite(now, self._env.agents, self._time, self._name)
        self._check_masks(now, self._time, self._name)
        return now

    def _check_rewards(self, reward: np.ndarray, acted: np.ndarray) -> None:
        try:
            team_reward(reward, acted, self._rule)
        except UnequalRewards as error:
            raise EnvironmentFault(
                error.cause(self._env.agents), environment=self._name, method="step", step=int(self._time[0])
            ) from None


class _OutOfTime(BaseException):
    """Not an `Exception`, so that no environment takes it for one of its own."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raises `_OutOfTime` in what lasts longer; call it in the main thread."""

    def ring(*_: Any) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    others, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        # Somebody else's alarm, if there was one, is late at most.
        signal.setitimer(signal.ITIMER_REAL, others)
        signal.signal(signal.SIGALRM, before)
