"""Drift functionals D^i (HAML, Definition 10): what a candidate policy pays for leaving the present one.

A drift is non-negative, zero at the present policy, and has zero gradient there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from rllib_haml.haml.families import Family


@dataclass(frozen=True)
class Move:
    """A candidate policy seen from the present one, on R rows.

    Attributes:
        ratio: (K, R) candidate over present probability of the taken action, differentiable.
        factor: (R,) compound ratio of the agents that moved before.
        advantage: (R,) Â of the team.
        family: The kind of action distribution.
        present: (K, R, P) parameters of the present policy's distributions.
        candidate: (K, R, P) those of the candidate's, differentiable.
        place: Which of the sweep's moves this is, divided by their number: in (0, 1].
    """

    ratio: Tensor
    factor: Tensor
    advantage: Tensor
    family: Family
    present: Tensor
    candidate: Tensor
    place: float = 1.0

    @property
    def m(self) -> Tensor:
        """(R,) M, the compound ratio times the advantage."""
        return self.factor * self.advantage

    def kl(self) -> Tensor:
        """(K, R) KL(present ‖ candidate), exact."""
        return self.family.kl(self.present, self.candidate)

    def reverse_kl(self) -> Tensor:
        """(K, R) KL(candidate ‖ present), exact."""
        return self.family.kl(self.candidate, self.present)


class Drift(Protocol):
    def __call__(self, move: Move) -> Tensor:
        """(K, R), the drift of each row in units of the advantage."""
        ...


@runtime_checkable
class AdaptiveDrift(Protocol):
    """A drift that changes from sweep to sweep; as a `torch.nn.Module` its buffers go into checkpoints."""

    def adapt(self, kl: float) -> None:
        """Told after each sweep how far the policy went: the mean KL(present ‖ candidate), in nats."""
        ...


@dataclass(frozen=True)
class NoDrift:
    """The trivial drift, 0 everywhere: HAA2C, and HATRPO with its ball as neighbourhood."""

    def __call__(self, move: Move) -> Tensor:
        return move.ratio.new_zeros(()).expand_as(move.ratio)


@dataclass(frozen=True)
class KLDrift:
    """coeff · KL(present ‖ candidate), exact: mirror descent with a penalty instead of a clip.

    Both directions are drifts: 0 only at the present policy, where the gradient is 0 too.

    Attributes:
        coeff: Price of a nat, in units of the advantage.
        reverse: Take KL(candidate ‖ present) instead.
    """

    coeff: float
    reverse: bool = False

    def __call__(self, move: Move) -> Tensor:
        return self.coeff * (move.reverse_kl() if self.reverse else move.kl())


@dataclass(frozen=True)
class ClipDrift:
    """ReLU((r - clip(r, 1 ± ε)) M), which makes r M - D the clipped objective min(r M, clip(r) M).

    HAPPO (Zhong et al. 2024, appendix H).

    Attributes:
        clip_param: ε, in units of the probability ratio.
        position_weight: w in [0, 1] narrows the clip of the sweep's k-th of n moves to
            ε_k = ε [(1 - w) + w k / n] (A2PO, Wang et al. 2023, arXiv 2302.06205).

    Raises:
        ValueError: If w is not in [0, 1].
    """

    clip_param: float
    position_weight: float = 0.0

    def __post_init__(self) -> None:
        _check_weight(self.position_weight)

    def __call__(self, move: Move) -> Tensor:
        epsilon = _position_clip(self.clip_param, self.position_weight, move.place)
        return _clipped_gain(move.ratio, move.m, epsilon)


@dataclass(frozen=True)
class JointClipDrift:
    """A2PO's clip of the joint ratio (Wang et al. 2023, arXiv 2302.06205).

    A2PO maximises min(ℓ Â, clip(ℓ, 1 ± ε) Â) with ℓ = r c, where c = clip(Π_{j<i} r_j, 1 ± ε') is `sweep`'s
    compound ratio under `compound_clip` = ε'. As r M = ℓ Â, this is r M - D with
    D = ReLU((ℓ - clip(ℓ, 1 ± ε)) Â), which is never negative. At the present policy ℓ = c: D and its
    gradient are 0 there if |c - 1| < ε, as is sure if ε' < ε. Where c lies outside, D has value and gradient
    at the present policy, so it is no drift in HAML's sense.

    Attributes:
        clip_param: ε, in units of the joint probability ratio.
        position_weight: As `ClipDrift`'s; ε' must then stay below the first mover's ε too.

    Raises:
        ValueError: If w is not in [0, 1].
    """

    clip_param: float
    position_weight: float = 0.0

    def __post_init__(self) -> None:
        _check_weight(self.position_weight)

    def __call__(self, move: Move) -> Tensor:
        epsilon = _position_clip(self.clip_param, self.position_weight, move.place)
        return _clipped_gain(move.ratio * move.factor, move.advantage, epsilon)


def _check_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"position_weight={weight!r}; expected 0 (one clip for all movers) to 1.")


def _position_clip(epsilon: float, weight: float, place: float) -> float:
    return epsilon * (1 - weight + weight * place)


def _clipped_gain(ratio: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """What ratio · advantage loses to min(ratio · advantage, clip(ratio, 1 ± ε) · advantage)."""
    return ((ratio - ratio.clamp(1 - epsilon, 1 + epsilon)) * advantage).relu()
