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
from rllib_haml.haml.check_drift import known
from rllib_haml.haml.families import MASKED_LOGIT
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


@dataclass
class Scaled:
    """A drift in another unit."""

    drift: Drift
    by: float

    def __call__(self, move: Move) -> Tensor:
        return self.by * self.drift(move)


@pytest.mark.parametrize("by", [1e-7, 1e7])
@pytest.mark.parametrize("drift, condition", OTHERS, ids=[type(drift).__name__ for drift, _ in OTHERS])
def test_the_unit_of_the_reward_does_not_matter(drift: Drift, condition: str, by: float) -> None:
    family = Product([Categorical(3), Gaussian(1)])
    plain, scaled = check_drift(drift, [family], states=4), check_drift(Scaled(drift, by), [family], states=4)
    assert scaled.condition == condition
    assert scaled.worst == pytest.approx(plain.worst, rel=1e-3)
    assert check_drift(Scaled(KLDrift(1.0), by), [family], states=4).holds


@dataclass
class OnlyIf:
    """Wrong where `some` of the present policies' choices are forbidden, or where some are not."""

    forbidden: bool

    def __call__(self, move: Move) -> Tensor:
        masked = (move.present == MASKED_LOGIT).any(-1)
        return torch.where(masked == self.forbidden, 1.0, 0.0) * (move.ratio - 1)


MASKABLE = [Categorical(4), MultiCategorical([2, 3]), Shaped(MultiCategorical([2, 2]), (2, 1))]


@pytest.mark.parametrize("forbidden", [False, True])
@pytest.mark.parametrize("family", [*MASKABLE, Product([Gaussian(1), Categorical(4)])], ids=repr)
def test_it_looks_with_and_without_masks(family: ActionFamily, forbidden: bool) -> None:
    """Of every state's choices at least one is left."""
    seen: list[Tensor] = []

    def drift(move: Move) -> Tensor:
        assert torch.isfinite(move.ratio).all()
        seen.append((move.present == MASKED_LOGIT).any(-1))
        return KLDrift(1.0)(move) + OnlyIf(forbidden)(move) * move.advantage

    assert not check_drift(drift, [family], states=6).holds
    assert torch.stack([masked.any() for masked in seen]).unique().tolist() == [False, True]


def test_nothing_but_the_seed_decides() -> None:
    """Not torch's own generator: places, masks, M and policies are drawn from the seed."""

    class ByPlace(TotalVariation):
        def __call__(self, move: Move) -> Tensor:
            return super().__call__(move) * move.place * move.m.abs()

    family = Product([Categorical(3), Gaussian(1)])
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        found.append(check_drift(ByPlace(), [family], states=2).worst)
    assert found[0] == found[1]
    assert torch.initial_seed() == 2


class FallingKink:
    """|x| of a difference x, with the gradient of the side on which it falls, -1."""

    def __call__(self, move: Move) -> Tensor:
        x = (move.candidate - move.present)[..., 0]
        return torch.where(x <= 0, -x, x)


def test_a_gradient_of_either_sign_is_a_slope() -> None:
    """Steps along a random direction see less of it: no more than its size at a step of 1/2, twice."""
    found = check_drift(FallingKink(), [Categorical(3)], states=1)
    assert found.condition == FLAT
    assert found.worst > 2.1


class NeverTried(ClipDrift):
    """A user's own, though it is like one of the package."""


@pytest.mark.parametrize(
    "drift, compound_clip, told",
    [
        (NoDrift(), None, True),
        (ClipDrift(0.2), 0.5, True),
        (ClipDrift(0.2, 1.0), None, True),
        (ClipDrift(0.0), None, False),
        (KLDrift(1.0), None, True),
        (KLDrift(-1.0), None, False),
        (JointClipDrift(0.2), 0.1, True),
        (JointClipDrift(0.2), 0.3, False),
        (JointClipDrift(0.2), None, False),
        (JointClipDrift(0.2, 0.5), 0.1, True),
        (JointClipDrift(0.2, 0.9), 0.1, False),
        (NeverTried(0.2), None, False),
    ],
)
def test_what_is_known_of_the_packages_drifts_is_what_trying_finds(
    drift: Drift, compound_clip: float | None, told: bool
) -> None:
    """Only what holds is known; of the rest, which users' drifts are, trying has to find out."""
    found = known(drift, compound_clip)
    assert (found is not None) == told
    tried = check_drift(drift, compound_clip=compound_clip)
    assert found is None or found == tried
    assert tried.holds == (told or isinstance(drift, NeverTried))


def test_trying_leaves_the_number_of_threads_as_it_was() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        check_drift(NoDrift())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
