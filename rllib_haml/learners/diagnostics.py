"""What an operator reads of an update: scalars over all learners' rows."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from rllib_haml.haml import Evaluation, JointRows
from rllib_haml.learners.collectives import world_size


@torch.no_grad()
def of_move(
    before: Evaluation, after: Evaluation, active: Tensor, rows: JointRows, clip_param: float
) -> dict[str, Tensor]:
    """How far one policy moved.

    Returns:
        `entropy` (nats, after), `mean_kl` (KL(before ‖ after), estimated on the taken actions by
        r - 1 - log r), `clip_fraction` (share of ratios outside 1 ± clip_param).
    """
    change = torch.where(active, after.log_prob - before.log_prob, 0)
    ratio = change.exp()
    clipped = ((ratio - 1).abs() > clip_param).to(ratio.dtype)
    figures = {"entropy": after.entropy, "mean_kl": ratio - 1 - change, "clip_fraction": clipped}
    return {k: rows.all_reduce(rows.mean(v, active)) for k, v in figures.items()}


@torch.no_grad()
def of_factor(log_factor: Tensor, rows: JointRows) -> dict[str, Tensor]:
    """Mean and extremes of the compound ratio after the whole sweep."""
    factor = log_factor.exp()
    everywhere = torch.ones_like(factor, dtype=torch.bool)
    high = _maximum(factor.max() if len(factor) else factor.new_zeros(()))
    low = -_maximum(-factor.min() if len(factor) else factor.new_full((), -torch.inf))
    mean = rows.all_reduce(rows.mean(factor, everywhere))
    return {"compound_ratio_mean": mean, "compound_ratio_min": low, "compound_ratio_max": high}


@torch.no_grad()
def behaviour_gap(before: Evaluation, behaviour_logp: Tensor, active: Tensor) -> Tensor:
    """max |log-probability of the learner - of the sampler| over all learners' active rows."""
    gap = torch.where(active, (before.log_prob - behaviour_logp).abs(), 0)
    return _maximum(gap.max() if gap.numel() else gap.new_zeros(()))


@torch.no_grad()
def explained_variance(target: Tensor, value: Tensor, counted: Tensor, rows: JointRows) -> Tensor:
    """1 - Var(target - value) / Var(target): 1 is a perfect critic, 0 one that knows the mean."""

    def variance(x: Tensor) -> Tensor:
        mean = rows.all_reduce(rows.mean(x, counted))
        return rows.all_reduce(rows.mean((x - mean).square(), counted))

    return 1 - variance(target - value) / variance(target).clamp(min=1e-12)


def _maximum(value: Tensor) -> Tensor:
    if world_size() > 1:
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value
