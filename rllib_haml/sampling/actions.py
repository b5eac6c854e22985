"""From a distribution's raw sample to what the environment is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.utils.spaces.space_utils import clip_action, get_base_struct_from_space, unsquash_action


def to_env_action(space: gym.Space, *, normalize: bool, clip: bool) -> Callable[[Any], Any]:
    """What RLlib's `NormalizeAndClipActions` does, on arrays (E, ...), with the bounds looked up once.

    Args:
        normalize: `normalize_actions`: scale [-1, 1] to the space's bounds and clip there.
        clip: `clip_actions`: clip to the bounds, if not normalised.
    """
    if not (normalize or clip):
        return lambda action: action
    if isinstance(space, gym.spaces.Box) and space.dtype in (np.float32, np.float64) and normalize:
        if not (space.bounded_below.all() and space.bounded_above.all()):
            return lambda action: action
        return _Unsquash(space)
    if isinstance(space, gym.spaces.Discrete):
        return lambda action: action
    struct = get_base_struct_from_space(space)
    if normalize:
        return lambda action: unsquash_action(action, struct)
    return lambda action: clip_action(action, struct)


class _Unsquash:
    """[-1, 1] → [low, high], clipped there; one temporary array."""

    def __init__(self, space: gym.spaces.Box):
        self._low, self._high = space.low, space.high
        self._half = (space.high - space.low) / 2.0

    def __call__(self, action: np.ndarray) -> np.ndarray:
        out = action + 1.0
        out *= self._half
        out += self._low
        np.maximum(out, self._low, out=out)
        return np.minimum(out, self._high, out=out)
