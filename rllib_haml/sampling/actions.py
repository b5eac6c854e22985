"""From a distribution's raw sample to what the environment is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from operator import itemgetter
from typing import Any

import gymnasium as gym
import numpy as np
import tree
from ray.rllib.utils.spaces.space_utils import clip_action, get_base_struct_from_space, unsquash_action

from rllib_haml._typing import AgentID


class ToEnvActions:
    """What RLlib's `NormalizeAndClipActions` does, on all agents' arrays (E, ...).

    Agents whose actions are vectors, to be scaled to their bounds, are scaled as one array.

    Args:
        spaces: Each agent's action space.
        normalize: `normalize_actions`: scale [-1, 1] to the space's bounds and clip there.
        clip: `clip_actions`: clip to the bounds, if not normalised.
    """

    def __init__(self, spaces: Mapping[AgentID, gym.Space], *, normalize: bool, clip: bool):
        self._alone: dict[AgentID, Callable[[Any], Any]] = {}
        vectors: dict[np.dtype, dict[AgentID, _Unsquash]] = {}
        for agent, space in spaces.items():
            scale = to_env_action(space, normalize=normalize, clip=clip)
            if isinstance(scale, _Unsquash) and scale.low.ndim == 1:
                vectors.setdefault(scale.low.dtype, {})[agent] = scale
            else:
                self._alone[agent] = scale
        self._joined = [_joined(scales) for scales in vectors.values()]

    def __call__(self, actions: Mapping[AgentID, Any]) -> dict[AgentID, Any]:
        """What each agent's environment is given, from the raw samples; those are kept."""
        given = {agent: scale(actions[agent]) for agent, scale in self._alone.items()}
        for places, scale in self._joined:
            rows = scale(np.concatenate([actions[agent] for agent in places], axis=1))
            for agent, place in places.items():
                given[agent] = rows[:, place]
        return given


def to_env_action(space: gym.Space, *, normalize: bool, clip: bool) -> Callable[[Any], Any]:
    """`ToEnvActions` for one agent, with the bounds looked up once."""
    if not (normalize or clip):
        return lambda action: action
    if isinstance(space, gym.spaces.Box) and space.dtype in (np.float32, np.float64) and normalize:
        if not (space.bounded_below.any() or space.bounded_above.any()):
            return lambda action: action
        return _Unsquash(space.low, space.high)
    if isinstance(space, gym.spaces.Discrete):
        return lambda action: action
    if normalize and isinstance(space, gym.spaces.Dict):
        parts = {key: to_env_action(part, normalize=True, clip=clip) for key, part in space.items()}
        return lambda action: {key: scale(action[key]) for key, scale in parts.items()}
    if normalize and isinstance(space, gym.spaces.Tuple):
        scales = [to_env_action(part, normalize=True, clip=clip) for part in space]
        return lambda action: tuple(scale(part) for scale, part in zip(scales, action, strict=True))
    struct = get_base_struct_from_space(space)
    if normalize:
        return lambda action: unsquash_action(action, struct)
    return lambda action: clip_action(action, struct)


class _Unsquash:
    """[-1, 1] → [low, high], clipped there; one temporary array.

    A number that is bounded on one side only has no scale: it stays as it is, and is clipped on that side.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray):
        self.low, self.high = low, high
        scaled = np.isfinite(low) & np.isfinite(high)
        # In the space's own precision, else it may lie outside.
        self._shift = scaled.astype(low.dtype)
        self._lowest = np.where(scaled, low, low.dtype.type(0))
        self._half = np.where(scaled, high - self._lowest, low.dtype.type(2)) / 2.0

    def __call__(self, action: np.ndarray) -> np.ndarray:
        out = action + self._shift
        out *= self._half
        out += self._lowest
        np.maximum(out, self.low, out=out)
        return np.minimum(out, self.high, out=out)


def _joined(scales: Mapping[AgentID, _Unsquash]) -> tuple[dict[AgentID, slice], _Unsquash]:
    """Each agent's place among all their numbers, and the scaling of these."""
    low, high = (np.concatenate([getattr(s, end) for s in scales.values()]) for end in ("low", "high"))
    stops = np.cumsum([len(scale.low) for scale in scales.values()]).tolist()
    places = [slice(start, stop) for start, stop in pairwise([0, *stops])]
    return dict(zip(scales, places, strict=True)), _Unsquash(low, high)


def sub_env_actions(space: gym.Space) -> Callable[[Any], list[Any] | np.ndarray]:
    """How a batch of actions in `space` is split into one action for each sub-environment.

    Arrays are copied once for the batch: an environment may keep its action, the caller may
    overwrite its own.
    """
    if isinstance(space, gym.spaces.Discrete):
        return lambda batch: np.asarray(batch).tolist()
    if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
        return _unbatch
    return lambda batch: np.array(batch)  # a copy, unlike np.asarray


def _unbatch(batch: Any) -> list[Any]:
    copied = tree.map_structure(np.array, batch)
    size = len(tree.flatten(copied)[0])
    return [tree.map_structure(itemgetter(row), copied) for row in range(size)]
