"""The preallocated arrays that sub-environments write their rows into."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.spaces import Leaf, assemble, leaves

_OBJECTS = np.dtype(object)


class ObsColumn:
    """One agent's observations of all sub-environments: a tree of arrays (E, ...).

    Attributes:
        value: The tree; its arrays are overwritten in place by `write` and `clear`.
    """

    def __init__(self, space: gym.Space, num_envs: int) -> None:
        self._leaves = [
            (leaf.path, leaf.shape, np.zeros((num_envs, *leaf.shape), leaf.dtype), leaf)
            for leaf in leaves(space)
        ]
        self.value: Any = assemble(space, [buffer for _, _, buffer, _ in self._leaves])

    def write(self, row: int, obs: Any) -> None:
        """Copies one observation into `row`.

        Raises:
            EnvironmentFault: The observation is not of the declared shape, or holds what its type or its
                options do not have.
        """
        for path, shape, buffer, leaf in self._leaves:
            value = obs
            for key in path:
                value = _entry(value, key)
            # Checked by hand: numpy would broadcast a wrong shape, and make NaN of None, without a word.
            if getattr(value, "shape", None) != shape or getattr(value, "dtype", None) is _OBJECTS:
                value = _as_shape(value, shape, path)
            if leaf.is_whole and (leaf.options is not None or value.dtype != leaf.dtype):
                demand_fit(leaf, value)
            buffer[row] = value

    def clear(self, row: int) -> None:
        """Fills `row` with zeros."""
        for _, _, buffer, _ in self._leaves:
            buffer[row] = 0

    def read(self, row: int) -> list[np.ndarray]:
        """Copies of the arrays' rows."""
        return [buffer[row].copy() for _, _, buffer, _ in self._leaves]

    def restore(self, row: int, arrays: list[np.ndarray]) -> None:
        """Puts back what `read` gave."""
        for (_, _, buffer, _), array in zip(self._leaves, arrays, strict=True):
            buffer[row] = array


def demand_fit(leaf: Leaf, value: Any) -> None:
    """Raises an `EnvironmentFault` for `Leaf.misfit`."""
    if misfit := leaf.misfit(value):
        raise EnvironmentFault(f"its {misfit}")


def _entry(value: Any, key: Any) -> Any:
    try:
        return value[key]
    except (KeyError, IndexError, TypeError):
        raise EnvironmentFault(f"its observation has no entry {key!r}") from None


def _as_shape(value: Any, shape: tuple[int, ...], path: tuple[Any, ...]) -> np.ndarray:
    """`value` as an array of `shape`, for numbers and lists; else a fault that says both shapes."""
    found: tuple[int, ...] | str
    try:
        array = np.asarray(value)
        found = array.shape
    except ValueError:
        array, found = None, "a ragged list"
    where = "".join(f"[{key!r}]" for key in path)
    if array is None or found != shape:
        raise EnvironmentFault(f"its observation{where} has shape {found}, its space says {shape}")
    if array.dtype.kind not in "fiub":
        for item in array.flat:
            if not isinstance(item, (int, float, np.number)):
                raise EnvironmentFault(f"its observation{where} holds {item!r}, which is not a number")
        return array.astype(np.float64)
    return array
