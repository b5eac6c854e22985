"""Whether copies of an environment in one process are copies: what one shows must not depend on another."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import tree

from rllib_haml.sampling.actions import ToEnvActions
from rllib_haml.sampling.make_vector import make_vector_team_env
from rllib_haml.sampling.random_actions import uniform_actions
from rllib_haml.sampling.vector_env import TeamStep, VectorTeamEnv

STEPS = 100
LIMIT_S = 0.5  # of one playing alone


def copies_share_state(creator: Callable[[Any], Any], context: Any) -> bool:
    """Plays one copy alone, again with another one beside it, and alone once more.

    Of an environment that does not repeat itself when it is seeded nothing can be told: False. Python's,
    numpy's and torch's global generators may be shared: each copy gets its own.
    """
    made = [creator(context) for _ in range(2)]
    if hasattr(made[0], "make_vec"):
        return False  # its copies are rows of one object
    envs = [make_vector_team_env(partial(_same, env), 1) for env in made]
    one, other = _Copy(envs[0], seed=1), _Copy(envs[1], seed=2)
    try:
        alone = one.play(STEPS)
        if one.play(len(alone)) != alone:
            return False
        beside = one.play(len(alone), other)
        return beside != alone and one.play(len(alone)) == alone
    finally:
        for env in envs:
            env.close()


def _same(env: Any) -> Any:
    return env


class _Copy:
    """Plays one sub-environment with random actions, the same each time."""

    def __init__(self, env: VectorTeamEnv, seed: int) -> None:
        self._env, self._seed = env, seed
        self._scale = ToEnvActions(env.action_spaces, normalize=True, clip=True)

    def play(self, steps: int, other: _Copy | None = None) -> list[bytes]:
        """What was seen in each step, until `steps` or the time are up; `other` is stepped before each."""
        self._begin()
        if other is not None:
            other._begin()
        seen, deadline = [], time.monotonic() + LIMIT_S
        while len(seen) < steps and (other is not None or not seen or time.monotonic() < deadline):
            if other is not None:
                other._step()
            seen.append(self._step())
        return seen

    def _begin(self) -> None:
        self._rng = np.random.default_rng(self._seed)
        self._generators = (
            random.Random(self._seed).getstate(),
            np.random.RandomState(self._seed).get_state(),
            torch.Generator().manual_seed(self._seed).get_state(),
        )
        self._now = self._call(self._env.reset, [0], [self._seed])

    def _step(self) -> bytes:
        now = self._now
        if now.terminated[0] or now.truncated[0]:
            self._now = self._call(self._env.reset, [0], [None])
        else:
            actions = {
                agent: uniform_actions(space, 1, now.action_mask.get(agent), self._rng, normalize=True)
                for agent, space in self._env.action_spaces.items()
            }
            self._now = self._call(self._env.step, self._scale(actions))
        return _bytes(self._now)

    def _call(self, method: Callable[..., TeamStep], *args: Any) -> TeamStep:
        """Calls the environment with its own state of the global generators."""
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            _set_generators(self._generators)
            return method(*args)
        finally:
            self._generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
            _set_generators(before)


def _set_generators(states: tuple[Any, Any, Any]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def _bytes(now: TeamStep) -> bytes:
    arrays = [*tree.flatten(now.obs), now.active, now.reward, now.terminated, now.truncated]
    return b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
