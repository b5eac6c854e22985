"""Whether a drift is one: both conditions of HAML's Definition 10, tried on random policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rllib_haml.haml.drift import ClipDrift, Drift, JointClipDrift, KLDrift, Move, NoDrift
from rllib_haml.haml.families import (
    ActionFamily,
    Bernoulli,
    Categorical,
    Gaussian,
    SquashedGaussian,
)
from rllib_haml.haml.flat import flat_gradient
from rllib_haml.haml.integrate import nodes
from rllib_haml.haml.products import MultiCategorical, Product, Shaped
from rllib_haml.haml.rows import generator

FAMILIES: tuple[ActionFamily, ...] = (
    Categorical(4),
    MultiCategorical([2, 3]),
    Bernoulli(2),
    Gaussian(2),
    SquashedGaussian(1),
    Product({"where": Gaussian(1), "what": Categorical(3)}),
)
AGENTS = 2
DISTANCES = (0.01, 0.1, 0.5)
# A kink's slope stays where a smooth function's shrinks with the distance; its gradient at the kink may be 0.
TINY, KINK = 1e-7, 1e-3
ROUNDING = 1e-9

Expected = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DriftCheck:
    """What `check_drift` found.

    Attributes:
        holds: Both conditions do, wherever they were tried.
        condition: The first that does not, in words, or "".
        worst: Its worst figure, relative to the largest size of the drift that was seen; 0 if all hold.
        family: What it was found on, or "".
        message: All of this, in one line.
    """

    holds: bool
    condition: str
    worst: float
    family: str
    message: str


def check_drift(
    drift: Drift,
    families: Sequence[ActionFamily] = FAMILIES,
    *,
    compound_clip: float | None = None,
    states: int = 16,
    seed: int = 0,
) -> DriftCheck:
    """Tries whether `drift` is a heterogeneous-agent drift functional (Zhong et al. 2024, Definition 10).

    A drift of a state is the expectation of the rows' values over the actions of the present policy, so it is
    that expectation which must be non-negative, and 0 with zero slope in every direction at the present
    policy: an estimate from samples, such as -log r, need not be so row by row. Expectations are enumerated
    or integrated, not sampled (`integrate.nodes`), with a random M of either sign for each action. Random
    trials can refute a drift, and only support it.

    Args:
        drift: What to try.
        families: On which action distributions; those that can be masked are, in half of the states.
        compound_clip: As `sweep`'s, bounds the compound ratio.
        states: Pairs of policies that are tried in each family.
        seed: Of all that is random.

    Raises:
        TypeError: If a family is not of this package.
        ValueError: If the drift's shape is not the ratio's (K, R).
    """
    random = generator("cpu", seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small take longer on several, by far where others compute, too
    try:
        return _tried(drift, families, compound_clip, states, random)
    finally:
        torch.set_num_threads(threads)


def known(drift: Drift, compound_clip: float | None) -> DriftCheck | None:
    """What `check_drift` would find of a drift of this package that is one; None of all others.

    A joint clip is one as long as no compound ratio leaves the narrowest clip of its sweep.
    """
    kind = type(drift)  # a subclass may do anything
    if kind is JointClipDrift and isinstance(drift, JointClipDrift) and compound_clip is not None:
        narrowest = drift.clip_param * (1 - drift.position_weight)
        # An agent's place in the sweep is above 0, which widens its clip by that much.
        holds = compound_clip < narrowest or (0 < compound_clip == narrowest and drift.position_weight > 0)
    else:
        holds = (
            kind is NoDrift
            or (kind is ClipDrift and isinstance(drift, ClipDrift) and drift.clip_param > 0)
            or (kind is KLDrift and isinstance(drift, KLDrift) and drift.coeff >= 0)
        )
    return _holds(drift) if holds else None


def _holds(drift: Drift) -> DriftCheck:
    message = f"{drift} is non-negative, and zero and flat at the present policy, as HAML asks of a drift."
    return DriftCheck(True, "", 0.0, "", message)


def _tried(
    drift: Drift,
    families: Sequence[ActionFamily],
    compound_clip: float | None,
    states: int,
    random: torch.Generator,
) -> DriftCheck:
    for family in families:
        moves = [_expectation(drift, family, compound_clip, s % 2 == 1, random) for s in range(states)]
        trials = [_try(expected, family.size, random) for expected in moves]
        least, value, slope, size = torch.stack(trials).unbind(-1)
        scale = size.max() if size.max() > 0 else torch.ones(())
        for condition, worst, limit in (
            ("non-negative", -least.min() / scale, ROUNDING),
            ("zero at the present policy", value.max() / scale, ROUNDING),
            ("flat at the present policy", slope.max() / scale, KINK),
        ):
            if not worst <= limit:
                return _refuted(drift, condition, float(worst), repr(family))
    return _holds(drift)


def _refuted(drift: Drift, condition: str, worst: float, family: str) -> DriftCheck:
    message = (
        f"{drift} is not a drift as HAML asks for: on {family} it is not {condition} (off by {worst:.2g} "
        f"times its own size). Training works, but without the guarantee of monotone improvement."
    )
    return DriftCheck(False, condition, worst, family, message)


def _try(expected: Expected, size: int, random: torch.Generator) -> Tensor:
    """(4,) least expectation, largest value and slope at the present policy, and the drift's size."""
    still = torch.zeros(AGENTS, size, dtype=torch.float64, requires_grad=True)
    present = expected(still)
    slope = flat_gradient(present.sum(), [still]).abs().max()
    direction = 2 * torch.rand(still.shape, generator=random, dtype=torch.float64) - 1
    with torch.no_grad():
        slope = torch.maximum(slope, ((expected(TINY * direction) - present) / TINY).abs().max())
        away = torch.stack([expected(distance * direction) for distance in DISTANCES])
    return torch.stack([away.min(), present.detach().abs().max(), slope, away.abs().max()])


def _expectation(
    drift: Drift, family: ActionFamily, compound_clip: float | None, masked: bool, random: torch.Generator
) -> Expected:
    """Of a random present policy and M: the move of its parameters (AGENTS, P) ↦ its drift (AGENTS,)."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    mask = _mask(family, random) if masked else torch.ones(AGENTS, family.mask_size, dtype=torch.bool)
    centre = 0.3 * normal(AGENTS, family.size) - 1
    present = family.masked(centre, mask)
    actions, log_weight = nodes(family, present)
    present = present[:, None].expand(*log_weight.shape, -1)
    before = family.log_prob(present, actions)
    factor, advantage = (0.5 * normal(log_weight.shape[1])).exp(), 3 * normal(log_weight.shape[1])
    if compound_clip is not None:
        factor = factor.clamp(1 - compound_clip, 1 + compound_clip)
    place = 1 - float(torch.rand((), generator=random))

    def expected(change: Tensor) -> Tensor:
        candidate = family.masked(centre + change, mask)[:, None].expand_as(present)
        ratio = (family.log_prob(candidate, actions) - before).exp()
        value = drift(Move(ratio, factor, advantage, family, present, candidate, place))
        if value.shape != ratio.shape:
            raise ValueError(
                f"{drift} gave the shape {tuple(value.shape)} for ratios (K, R) = {tuple(ratio.shape)}: "
                f"return one number for each row of each agent."
            )
        return (log_weight.exp() * value).sum(-1)

    return expected


def _mask(family: ActionFamily, random: torch.Generator) -> Tensor:
    """(AGENTS, mask_size) that leaves at least one choice of each part."""
    if isinstance(family, Shaped):
        return _mask(family.vectors, random)
    if isinstance(family, Product):
        return torch.cat([_mask(part, random) for part in family.parts], dim=-1)
    allowed = torch.rand(AGENTS, family.mask_size, generator=random) < 0.6
    if family.mask_size:
        allowed[:, int(torch.randint(family.mask_size, (), generator=random))] = True
    return allowed
