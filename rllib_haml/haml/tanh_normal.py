"""What tanh takes from the entropy of a normal number: a closed form for each term of a short series."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.special import erfcx, ndtr

# Of the alternating series; what is left out is below 1e-10 for all means and deviations.
TERMS = 14


def expected_log_slope(mean: Tensor, log_std: Tensor) -> Tensor:
    """(...) E log(1 - tanh² u), u normal, in nats; differentiable.

    log(1 - tanh² u) = 2 (log 2 - |u| - log(1 + exp(-2|u|))). E|u| is the folded normal's mean. The logarithm
    is the alternating series of exp(-2k|u|) / k, whose expectations are known, and whose sum the first
    `TERMS` give nearly exactly (Cohen, Rodriguez Villegas and Zagier 2000, algorithm 1): quadrature would
    need the more nodes the larger the deviation is.
    """
    std = log_std.exp()
    rate = 2.0 * torch.arange(1, TERMS + 1, dtype=mean.dtype, device=mean.device)
    series = _expected_decay(mean[..., None], std[..., None], rate) @ (2 * mean.new_tensor(_weights()) / rate)
    ratio = mean / std
    folded = std * math.sqrt(2 / math.pi) * (-0.5 * ratio.square()).exp()
    folded = folded + mean * torch.erf(math.sqrt(0.5) * ratio)
    return 2 * (math.log(2) - folded - series)


def _expected_decay(mean: Tensor, std: Tensor, rate: Tensor) -> Tensor:
    """E exp(-rate |u|), without overflow or cancellation in float32 either."""
    mean = mean.abs()
    ratio, shift = mean / std, rate * std
    half_peak = 0.5 * (-0.5 * ratio.square()).exp()
    beyond = half_peak * erfcx(math.sqrt(0.5) * (shift + ratio))
    # The side on which the mean lies; the second form where the first would overflow.
    near = half_peak * erfcx(math.sqrt(0.5) * (shift - ratio).clamp(min=0))
    far = (rate * (0.5 * rate * std.square() - mean)).clamp(max=0).exp() * ndtr(ratio - shift)
    return beyond + torch.where(shift > ratio, near, far)


@cache
def _weights() -> list[float]:
    """Of the terms of an alternating series, the sign included; the first is taken with a plus."""
    total = (3 + math.sqrt(8)) ** TERMS
    total = (total + 1 / total) / 2
    b, c, weights = -1.0, -total, []
    for k in range(TERMS):
        c = b - c
        weights.append(c / total)
        b *= (k + TERMS) * (k - TERMS) / ((k + 0.5) * (k + 1))
    return weights
