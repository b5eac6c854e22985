"""Uniform actions, as a policy would have drawn them: on its scale, and only what masks allow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rllib_haml.sampling.spaces import choices


def uniform_actions(
    space: gym.Space, num_envs: int, mask: np.ndarray | None, rng: np.random.Generator, *, normalize: bool
) -> Any:
    """A tree of arrays (E, ...).

    Args:
        mask: (E, n_i) bool, or None if everything is allowed.
        normalize: `normalize_actions`: bounded numbers are drawn from [-1, 1], to be scaled later.
    """
    sizes = choices(space)
    free = np.ones((num_envs, sum(sizes)), bool) if mask is None else mask
    allowed = iter(np.split(free, np.cumsum(sizes)[:-1], axis=1) if sizes else [])

    def draw(part: gym.Space) -> Any:
        if isinstance(part, spaces.Dict):
            return {key: draw(sub) for key, sub in part.items()}
        if isinstance(part, spaces.Tuple):
            return tuple(draw(sub) for sub in part)
        if isinstance(part, spaces.Discrete):
            return _choose(allowed, 1, rng)[:, 0]
        if isinstance(part, spaces.MultiDiscrete):
            return _choose(allowed, part.nvec.size, rng).reshape(num_envs, *part.shape)
        batch = gym.vector.utils.batch_space(part, num_envs)
        batch.seed(int(rng.integers(2**31)))
        if isinstance(part, spaces.Box) and normalize and np.dtype(part.dtype).kind == "f":
            scaled = rng.uniform(-1, 1, batch.shape or ()).astype(np.float32)
            return np.where(part.bounded_below & part.bounded_above, scaled, batch.sample())
        return batch.sample()

    return draw(space)


def _choose(allowed: Iterator[np.ndarray], count: int, rng: np.random.Generator) -> np.ndarray:
    """(E, count): of each of the next `count` choices one allowed option."""
    masks = [next(allowed) for _ in range(count)]
    return np.stack([(rng.random(mask.shape) * mask).argmax(-1) for mask in masks], axis=-1)
