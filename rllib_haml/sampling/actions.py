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
        low, high = space.low, space.high
        half = (high - low) / 2.0
        return lambda action: np.minimum(np.maximum(low + (action + 1.0) * half, low), high)
    if isinstance(space, gym.spaces.Discrete):
        return lambda action: action
    struct = get_base_struct_from_space(space)
    if normalize:
        return lambda action: unsquash_action(action, struct)
    return lambda action: clip_action(action, struct)
