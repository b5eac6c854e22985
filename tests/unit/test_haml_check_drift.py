"""`check_drift` passes what is a drift in HAML's sense, refuses what is not, and says why."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rllib_haml.haml import (
    ActionFamily,
    Bernoulli,
    Categorical,
    ClipDrift,
    Drift,
    Gaussian,
    JointClipDrift,
    KLDrift,
    Move,
    MultiCategorical,
    NoDrift,
    Product,
    SquashedGaussian,
    check_drift,
)
from rllib_haml.haml.products import Shaped

FAMILIES = [
    Categorical(4),
    MultiCategorical([2, 3]),
    Bernoulli(2),
    Gaussian(2),
    SquashedGaussian(1),
    Product({"on": Bernoulli(1), "then": Product([Categorical(2), Gaussian(1)])}),
    Shaped(Gaussian(2), (1, 2)),
    Shaped(MultiCategorical([2, 2]), (2, 1)),
]


class SquaredDistance:
    """Of the distributions' parameters."""

    def __call__(self, move: Move) -> Tensor:
        return (move.candidate - move.present).square().sum(-1)


class SampledKL:
    """−log r: its expectation is KL(present ‖ candidate), but half of its samples are negative."""

    def __call__(self, move: Move) -> Tensor:
        return -move.ratio.log()


class TotalVariation:
    """Its gradient at the present policy is 0 by autograd, which takes |0|' for 0; its slope is not."""

    def __call__(self, move: Move) -> Tensor:
        return (move.ratio - 1).abs() / 2


@dataclass
class EntropyBonus:
    """What an entropy bonus adds to the objective, as a drift; 0 at the present policy if `relative`."""

    relative: bool

    def __call__(self, move: Move) -> Tensor:
        entropy = move.family.entropy(move.candidate)
        return -0.01 * (entropy - move.family.entropy(move.present) if self.relative else entropy)


class LinearPenalty:
    """Non-negative and 0 at the present policy, but with a kink there."""

    def __call__(self, move: Move) -> Tensor:
        return (move.candidate - move.present).square().sum(-1).clamp(min=1e-30).sqrt()


class NotANumber:
    def __call__(self, move: Move) -> Tensor:
        return move.ratio * torch.nan


class WeightedSampledKL:
    """−log r weighted by |M| is not non-negative even in expectation."""

    def __call__(self, move: Move) -> Tensor:
        return -move.ratio.log() * move.m.abs()


DRIFTS = [
    NoDrift(),
    ClipDrift(0.2),
    ClipDrift(0.2, position_weight=0.5),
    KLDrift(0.01),
    KLDrift(100.0),
    KLDrift(1.0, reverse=True),
    SquaredDistance(),
    SampledKL(),
]
NON_NEGATIVE, ZERO, FLAT = "non-negative", "zero at the present policy", "flat at the present policy"
OTHERS = [
    (TotalVariation(), FLAT),
    (LinearPenalty(), FLAT),
    (EntropyBonus(relative=True), NON_NEGATIVE),
    (EntropyBonus(relative=False), NON_NEGATIVE),
    (KLDrift(-1.0), NON_NEGATIVE),
    (WeightedSampledKL(), NON_NEGATIVE),
    (ClipDrift(0.0), FLAT),
    (JointClipDrift(0.2), ZERO),
]


@pytest.mark.parametrize("drift", DRIFTS, ids=lambda drift: type(drift).__name__)
def test_drifts_pass(drift: Drift) -> None:
    """Both KL, the squared distance, clipping, and an estimate that is non-negative in expectation only."""
    found = check_drift(drift)
    assert found.holds, found.message
    assert (found.condition, found.worst, found.family) == ("", 0.0, "")
    assert "\n" not in found.message


@pytest.mark.parametrize("drift, condition", OTHERS, ids=[type(drift).__name__ for drift, _ in OTHERS])
@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_others_fail(drift: Drift, condition: str, family: ActionFamily) -> None:
    """On every family, with the condition that breaks, and where, in one line."""
    found = check_drift(drift, [family])
    assert not found.holds
    assert found.condition == condition
    assert found.worst > 1e-3
    assert found.family == repr(family)
    assert "\n" not in found.message
    assert all(
        part in found.message for part in (str(drift), condition, repr(family), "without the guarantee")
    )


def test_an_entropy_bonus_has_a_slope_too() -> None:
    """Its other defect, seen where the first is hidden: never negative, but not flat."""

    class Shifted(EntropyBonus):
        def __call__(self, move: Move) -> Tensor:
            return super().__call__(move).abs()

    assert check_drift(Shifted(relative=True)).condition == FLAT


@pytest.mark.parametrize("compound_clip, holds", [(0.1, True), (0.3, False), (None, False)])
def test_joint_clip_is_a_drift_within_its_clip(compound_clip: float | None, holds: bool) -> None:
    """If the compound ratio stays strictly inside 1 ± ε; else it has a value at the present policy."""
    assert check_drift(JointClipDrift(0.2), compound_clip=compound_clip).holds == holds


def test_position_narrows_what_joint_clip_can_bear() -> None:
    """With w = 0.9 early movers' ε falls below the compound ratio's bound, which w = 0.2 leaves."""
    assert check_drift(JointClipDrift(0.2, 0.2), compound_clip=0.1).holds
    assert not check_drift(JointClipDrift(0.2, 0.9), compound_clip=0.1).holds


def test_not_a_number_fails() -> None:
    assert not check_drift(NotANumber()).holds


def test_the_seed_decides() -> None:
    """Equal seeds give equal figures, others other figures."""
    worst = [check_drift(TotalVariation(), seed=seed).worst for seed in (1, 1, 2)]
    assert worst[0] == worst[1] != worst[2]


class Stranger:
    """A family of somebody else's."""

    mask_size = 0

    def __init__(self, size: int):
        self.size = size

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        return parameters


def test_wrong_shapes_and_families_are_named() -> None:
    with pytest.raises(ValueError, match=r"shape \(\).*one number for each row"):
        check_drift(lambda move: move.ratio.mean())
    with pytest.raises(TypeError, match=r"Cannot integrate.*Stranger"):
        check_drift(NoDrift(), [Stranger(2)])  # type: ignore[list-item]
