"""The leading part of a network: what an agent with narrower spaces uses of one that a team shares."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
from gymnasium import spaces
from torch import Tensor


def is_leading(part: gym.Space, whole: gym.Space) -> bool:
    """Whether entries of `part` are the first of `whole`: equal spaces, vectors, or numbers of choices."""
    if part == whole:
        return True
    if isinstance(part, spaces.Box) and isinstance(whole, spaces.Box):
        return len(part.shape) == len(whole.shape) == 1 and part.shape[0] <= whole.shape[0]
    if isinstance(part, spaces.Discrete) and isinstance(whole, spaces.Discrete):
        return int(part.start) == int(whole.start) == 0 and int(part.n) <= int(whole.n)
    return False


def widest(of: Sequence[gym.Space]) -> gym.Space:
    """The first of these spaces that has all of them as leading parts.

    Raises:
        ValueError: There is none; the message names two that do not fit.
    """
    for whole in of:
        if all(is_leading(part, whole) for part in of):
            return whole
    one, other = next((a, b) for a in of for b in of if not (is_leading(a, b) or is_leading(b, a)))
    raise ValueError(f"neither of {one} and {other} is the leading part of the other")


def leading(whole: Tensor, shape: Sequence[int]) -> Tensor:
    """W[:n, :m, ...] for a `shape` (n, m, ...), a view; `whole` itself if that is its shape."""
    return whole if tuple(whole.shape) == tuple(shape) else whole[tuple(map(slice, shape))]
