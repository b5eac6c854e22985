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
class ClipDrift:
    """ReLU((r - clip(r, 1 ± ε)) M), which makes r M - D the clipped objective min(r M, clip(r) M).

    HAPPO (Zhong et al. 2024, appendix H).

    Attributes:
        clip_param: ε, in units of the probability ratio.
    """

    clip_param: float

    def __call__(self, move: Move) -> Tensor:
        clipped = move.ratio.clamp(1 - self.clip_param, 1 + self.clip_param)
        return ((move.ratio - clipped) * move.m).relu()
