"""MAMuJoCo's local observations, read with one index instead of a walk over the robot's joints.

gymnasium-robotics builds each observation number by number in Python, which costs as much as the
physics. Most of these observations are plain selections from the simulator's arrays, some clipped.
`learn` finds out which by showing the original builder marked data, and checks itself on random
data; where the builder does anything else (sines, distances), there is no shortcut and the
original is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

FIELDS = ("qpos", "qvel", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")
# Marks lie in (0, 1e-3), inside all clipping bounds, and are exact in binary.
_MARK = 2.0**-30
_HUGE = 1e9

Builder = Callable[[Any], np.ndarray]


class Selection:
    """All agents' observations as one gather from the simulator's arrays.

    Args:
        fields: The arrays to read, flattened one after another.
        index: For each number of all agents' observations, its place there.
        low: Lower clipping bounds.
        high: Upper clipping bounds.
        lengths: Lengths of the agents' observations.
    """

    def __init__(
        self,
        fields: Sequence[str],
        index: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        lengths: Sequence[int],
    ) -> None:
        self._fields = tuple(fields)
        self._index = index
        self._clip = None if np.isinf(low).all() and np.isinf(high).all() else (low, high)
        stops = np.cumsum(lengths).tolist()
        self._slices = [slice(a, b) for a, b in zip([0, *stops[:-1]], stops, strict=True)]
        # Equal for selections that are equal.
        self.key = (self._fields, index.tobytes(), low.tobytes(), high.tobytes(), tuple(stops))

    def __call__(self, data: Any) -> list[np.ndarray]:
        """The agents' observations (float64) in `data`, in their order."""
        flat = np.concatenate([getattr(data, name).ravel() for name in self._fields])
        picked = flat[self._index]
        if self._clip is not None:
            picked = np.clip(picked, *self._clip)
        return [picked[part] for part in self._slices]

    def rows(self, data: Sequence[Any]) -> list[np.ndarray]:
        """The same of E simulators: the agents' observations (E, n_i)."""
        arrays = [getattr(one, name).ravel() for one in data for name in self._fields]
        picked = np.concatenate(arrays).reshape(len(data), -1).take(self._index, axis=1)
        if self._clip is not None:
            picked = np.clip(picked, *self._clip)
        return [picked[:, part] for part in self._slices]


def standardised(vectors: np.ndarray) -> np.ndarray:
    """(x − mean) / std along the last axis; constant vectors become zeros."""
    deviation = vectors.std(-1, keepdims=True)
    return (vectors - vectors.mean(-1, keepdims=True)) / np.where(deviation > 0, deviation, 1.0)


def learn(builders: Sequence[Builder], data: Any) -> Selection | None:
    """The selection that equals `builders`, or None where there is none.

    Args:
        builders: One for each agent, from the simulator's data to an observation.
        data: The simulator's data, for the shapes of its arrays.
    """
    shapes = {name: getattr(data, name).shape for name in FIELDS}
    size = sum(int(np.prod(shape)) for shape in shapes.values())

    def observe(flat: np.ndarray) -> list[np.ndarray]:
        parts, start = {}, 0
        for name, shape in shapes.items():
            stop = start + int(np.prod(shape))
            parts[name] = flat[start:stop].reshape(shape)
            start = stop
        return [builder(SimpleNamespace(**parts)) for builder in builders]

    try:
        marked = observe(np.arange(1, size + 1) * _MARK)
    except AttributeError:  # reads something else of the simulator
        return None
    index = np.rint(np.concatenate(marked) / _MARK).astype(int) - 1
    if index.min() < 0 or index.max() >= size:
        return None
    bounds = [np.concatenate(observe(np.full(size, sign * _HUGE))) for sign in (-1, 1)]
    low, high = (np.where(np.abs(bound) == _HUGE, np.sign(bound) * np.inf, bound) for bound in bounds)
    # Only the arrays that are used are copied at each step.
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    owner = np.searchsorted(ends, index, side="right")
    used = sorted(set(owner.tolist()))
    lengths = np.diff(np.concatenate([[0], ends]))
    new_start = dict(zip(used, np.cumsum([0, *lengths[used]])[:-1], strict=True))
    old_start = ends - lengths
    index = np.array([i - old_start[o] + new_start[o] for i, o in zip(index, owner, strict=True)])
    selection = Selection([FIELDS[i] for i in used], index, low, high, [len(part) for part in marked])
    return selection if _agrees(selection, builders, shapes) else None


def _agrees(selection: Selection, builders: Sequence[Builder], shapes: dict[str, tuple[int, ...]]) -> bool:
    generator = np.random.default_rng(0)
    for scale in (0.3, 3.0, 30.0):
        data = SimpleNamespace(
            **{name: scale * generator.standard_normal(shape) for name, shape in shapes.items()}
        )
        ours = selection(data)
        theirs = [builder(data) for builder in builders]
        if not all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)):
            return False
    return True
