"""Drift functionals D^i (HAML, Definition 10): what a candidate policy pays for leaving the present one.

A drift is non-negative, zero at the present policy, and has zero gradient there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Drift(Protocol):
    def __call__(self, ratio: Tensor, m: Tensor) -> Tensor:
        """Drift of each row.

        Args:
            ratio: (K, R) candidate over present probability of the taken action, differentiable.
            m: (R,) M, the compound ratio of the agents that moved before, times the advantage.

        Returns:
            (K, R), in units of the advantage.
        """
        ...


@dataclass(frozen=True)
class NoDrift:
    """The trivial drift, 0 everywhere: HAA2C, and HATRPO with its ball as neighbourhood."""

    def __call__(self, ratio: Tensor, m: Tensor) -> Tensor:
        return ratio.new_zeros(()).expand_as(ratio)


@dataclass(frozen=True)
class ClipDrift:
    """ReLU((r - clip(r, 1 ± ε)) M), which makes r M - D the clipped objective min(r M, clip(r) M).

    HAPPO (Zhong et al. 2024, appendix H).

    Attributes:
        clip_param: ε, in units of the probability ratio.
    """

    clip_param: float

    def __call__(self, ratio: Tensor, m: Tensor) -> Tensor:
        return ((ratio - ratio.clamp(1 - self.clip_param, 1 + self.clip_param)) * m).relu()
