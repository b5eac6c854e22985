"""What the sampler makes of a space: its leaves, their shapes and types, and its action mask."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Leaf(NamedTuple):
    """One array of an observation: where it lies in the tree, its shape and its type.

    Attributes:
        options: The first and the last value of a choice, which names its options; None of other numbers.
    """

    path: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    options: tuple[Any, Any] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether its numbers are no real ones, which all fit."""
        return self.dtype.kind != "f"

    def misfit(self, value: Any) -> str | None:
        """What in `value`, one or many of these arrays, is not whole, or does not fit this type or these
        options: numpy would wrap it or cut it without a word. None if nothing is, and of real numbers."""
        if not self.is_whole:
            return None
        given = np.asarray(value)
        with np.errstate(invalid="ignore"):
            kept = given.astype(self.dtype)
        wrong = kept != given
        if self.options is not None:
            wrong |= (given < self.options[0]) | (given > self.options[1])
        if not wrong.any():
            return None
        where = "".join(f"[{key!r}]" for key in self.path)
        range_ = "" if self.options is None else f" from {self.options[0]} to {self.options[1]}"
        return f"observation{where} holds {given[wrong].flat[0]!s}, its space has {self.dtype}{range_}"


def leaves(space: gym.Space, path: tuple[Any, ...] = ()) -> list[Leaf]:
    """The arrays that make up an element of `space`, in the order of its declaration.

    Real-valued boxes become float32, what networks take; integers and images keep their type.

    Raises:
        TypeError: `space` holds something that is not an array of fixed shape.
    """
    if isinstance(space, spaces.Dict):
        return [leaf for key, sub in space.items() for leaf in leaves(sub, (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, sub in enumerate(space) for leaf in leaves(sub, (*path, i))]
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return [Leaf(path, (), np.dtype(np.int64), (first, first + int(space.n) - 1))]
    if isinstance(space, spaces.MultiDiscrete):
        last = space.start + space.nvec - 1
        return [Leaf(path, space.shape, np.dtype(space.dtype), (space.start, last))]
    if isinstance(space, spaces.MultiBinary):
        return [Leaf(path, space.shape, np.dtype(space.dtype), (0, 1))]
    if isinstance(space, spaces.Box):
        dtype = np.dtype(space.dtype)
        return [Leaf(path, space.shape, np.dtype(np.float32) if dtype.kind == "f" else dtype)]
    where = f" at {'/'.join(map(str, path))}" if path else ""
    raise TypeError(
        f"cannot sample from {type(space).__name__}{where}: expected Box, Discrete, MultiDiscrete, "
        "MultiBinary, or a Dict or Tuple of them. Convert it in the environment"
    )


def assemble(space: gym.Space, arrays: list[Any]) -> Any:
    """Puts arrays, one for each of `leaves(space)`, back into the tree of `space`."""
    rest = iter(arrays)

    def build(part: gym.Space) -> Any:
        if isinstance(part, spaces.Dict):
            return {key: build(sub) for key, sub in part.items()}
        if isinstance(part, spaces.Tuple):
            return tuple(build(sub) for sub in part)
        return next(rest)

    return build(space)


def zeros(space: gym.Space, *lead: int) -> Any:
    """A tree of arrays (*lead, ...) of zeros, with the shapes and types of `space`."""
    if isinstance(space, spaces.Dict):
        return {key: zeros(sub, *lead) for key, sub in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(zeros(sub, *lead) for sub in space)
    return np.zeros((*lead, *(space.shape or ())), space.dtype)


def as_float32(space: gym.Space) -> gym.Space:
    """The same space with every real-valued box in float32."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: as_float32(sub) for key, sub in space.items()})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([as_float32(sub) for sub in space])
    if isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f":
        if space.dtype == np.float32:
            return space
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        return spaces.Box(low, high, dtype=np.float32)
    return space


def choices(action_space: gym.Space) -> list[int]:
    """Options of each choice in `action_space`, in the order in which an action mask concatenates them.

    Boxes and switches (MultiBinary) offer no choice; Dicts and Tuples those of their parts.
    """
    if isinstance(action_space, spaces.Discrete):
        return [int(action_space.n)]
    if isinstance(action_space, spaces.MultiDiscrete):
        return action_space.nvec.flatten().tolist()
    parts = list(action_space.values()) if isinstance(action_space, spaces.Dict) else []
    parts = list(action_space) if isinstance(action_space, spaces.Tuple) else parts
    return [options for part in parts for options in choices(part)]


def holds_action_mask(observation_space: gym.Space, action_space: gym.Space) -> bool:
    """Whether observations are a Dict with a mask of the actions in it, whatever else the Dict holds."""
    in_observation = isinstance(observation_space, spaces.Dict) and "action_mask" in observation_space.spaces
    return in_observation and bool(choices(action_space))


def box_state_space(space: gym.Space) -> spaces.Box:
    """`space` in float32.

    Raises:
        TypeError: It is no Box; the critic takes one array.
    """
    if not isinstance(space, spaces.Box):
        raise TypeError(f"state_space is {space}; expected a Box, the critic takes one array")
    return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
