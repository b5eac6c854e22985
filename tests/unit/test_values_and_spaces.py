"""Values that do not fit the declared space are faults, and each bounded side of an action box is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete

from rllib_haml.sampling.actions import ToEnvActions
from rllib_haml.sampling.columns import ObsColumn
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.from_episodes import _batched
from rllib_haml.sampling.masks import ActionMasks
from rllib_haml.sampling.random_actions import uniform_actions

BYTES, CHOICE = Box(0, 255, (2,), np.uint8), Discrete(3, start=1)
MISFITS = [
    (BYTES, np.array([-1, 300])),
    (BYTES, [7, 256]),
    (BYTES, np.array([0.5, 1.0])),
    (BYTES, np.array([np.nan, 1.0])),
    (Box(-9, 9, (1,), np.int32), np.array([2**40])),
    (CHOICE, 4),
    (CHOICE, np.int64(0)),
    (CHOICE, 1.5),
    (MultiDiscrete([2, 3]), np.array([1, 3])),
    (MultiBinary(2), np.array([0, 2])),
    (spaces.Dict({"x": spaces.Tuple([BYTES])}), {"x": (np.array([0, -1]),)}),
]
FITS = [
    (BYTES, np.array([0, 255], np.int64)),
    (BYTES, np.array([3.0, 4.0])),
    (BYTES, np.array([True, False])),
    (CHOICE, 3),
    (CHOICE, np.array(1, np.uint8)),
    (MultiDiscrete([2, 3]), [1, 2]),
    (MultiBinary(2), np.array([0, 1])),
]


@pytest.mark.parametrize("space, value", MISFITS, ids=str)
def test_what_does_not_fit_is_never_wrapped_or_cut(space: Any, value: Any) -> None:
    with pytest.raises(EnvironmentFault, match=r"observation.* holds .*, its space has"):
        ObsColumn(space, 2).write(1, value)
    with pytest.raises(EnvironmentFault, match="holds"):
        _batched(space, [value])


@pytest.mark.parametrize("space, value", FITS, ids=str)
def test_control_what_fits_is_kept(space: Any, value: Any) -> None:
    column = ObsColumn(space, 2)
    column.write(1, value)
    np.testing.assert_array_equal(column.value[1], value)
    np.testing.assert_array_equal(_batched(space, [value])[0], value)


def test_a_mask_is_of_zeros_and_ones() -> None:
    def written(mask: Any) -> Any:
        masks = ActionMasks({"a": Box(0, 1, (1,))}, {"a": Discrete(2)}, 1)
        masks.write(0, ["a"], {"a": np.zeros(1)}, {"a": {"action_mask": mask}})
        return masks.value["a"][0].tolist()

    for mask in ([0.0, -np.inf], [1, -1], [0.5, 1.0], [2, 0]):
        with pytest.raises(EnvironmentFault, match="expected 0 and 1"):
            written(np.array(mask))
    assert written(np.array([0, 1], np.int8)) == written([False, True]) == [False, True]


LOW = np.array([0, -np.inf, -0.1, -np.inf], np.float32)
HIGH = np.array([np.inf, 5, 0.1, np.inf], np.float32)
HALF = Box(LOW, HIGH)


@pytest.mark.parametrize("how", [{"normalize": True, "clip": False}, {"normalize": False, "clip": True}])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: spaces.Tuple([x]), lambda x: spaces.Dict({"k": x})])
def test_each_bounded_side_is_kept(how: dict[str, bool], wrap: Any) -> None:
    space = wrap(HALF)
    raw = np.random.default_rng(0).normal(0, 9, (500, 4)).astype(np.float32)
    given: Any = ToEnvActions({"a": space}, **how)(
        {"a": raw if space is HALF else (raw,) if isinstance(space, spaces.Tuple) else {"k": raw}}
    )["a"]
    rows = given if space is HALF else given[0] if isinstance(space, spaces.Tuple) else given["k"]
    assert (rows >= LOW).all()
    assert (rows <= HIGH).all()
    np.testing.assert_array_equal(rows[:, 3], raw[:, 3])  # unbounded: as it is
    inside = (raw[:, 0] > 0) & (np.abs(raw[:, 0]) < 9)
    np.testing.assert_array_equal(rows[inside, 0], raw[inside, 0])


@pytest.mark.parametrize("normalize", [True, False])
def test_random_actions_keep_them_and_use_all_of_a_bounded_side(normalize: bool) -> None:
    drawn = uniform_actions(HALF, 500, None, np.random.default_rng(0), normalize=normalize)
    given = ToEnvActions({"a": HALF}, normalize=normalize, clip=False)({"a": drawn})["a"]
    assert (given >= LOW).all()
    assert (given <= HIGH).all()
    assert given[:, 2].min() < -0.09
    assert given[:, 2].max() > 0.09
