"""What an operator reads of an update: scalars over all learners' rows."""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_haml.haml import Evaluation, JointRows, MirrorStep
from rllib_haml.learners.collectives import all_maximum


@torch.no_grad()
def of_move(step: MirrorStep, after: Evaluation, clip_param: float) -> dict[str, Tensor]:
    """How far one policy moved and what it gained by that.

    Returns:
        `surrogate_gain`: E[(r - 1) M], in standard deviations of the advantage.
        `drift`: What the policy paid for it, in the same unit.
        `mean_kl`, `max_kl`: Exact KL(before ‖ after), in nats.
        `entropy`: After, in nats.
        `clip_fraction`: Share of ratios outside 1 ± clip_param.
    """
    player, rows = step.player, step.rows
    active, move = player.policy.active, step.move(after)
    kl = move.kl()
    figures = {
        "surrogate_gain": (move.ratio - 1) * move.m,
        "drift": player.drift(move),
        "mean_kl": kl,
        "entropy": after.entropy,
        "clip_fraction": ((move.ratio - 1).abs() > clip_param).to(kl.dtype),
    }
    means = rows.all_reduce(torch.stack([rows.mean(v, active) for v in figures.values()]))
    return {**dict(zip(figures, means, strict=True)), "max_kl": largest(kl, active)}


@torch.no_grad()
def of_factor(factor: Tensor, counted: Tensor, rows: JointRows) -> dict[str, Tensor]:
    """The compound ratio w (S,) on all learners' counted rows.

    Returns:
        `compound_ratio_mean`, `compound_ratio_min`, `compound_ratio_max`, and `effective_sample_size`,
        (Σ w)² / (R Σ w²) of R rows, as a share of them (Kish 1965). All 1 if no row counts.
    """
    parts = [rows.mean(x, counted) for x in (factor, factor.square(), torch.ones_like(factor))]
    mean, square, any_row = rows.all_reduce(torch.stack(parts))
    figures = {
        "compound_ratio_mean": mean,
        "compound_ratio_min": -largest(-factor, counted, least=-torch.inf),
        "compound_ratio_max": largest(factor, counted),
        "effective_sample_size": mean.square() / square,
    }
    return {name: torch.where(any_row > 0, value, 1) for name, value in figures.items()}


def improvement_lower_bound(
    surrogate_gain: Tensor, max_kl: Tensor, deviation: Tensor, largest: Tensor, gamma: float
) -> Tensor:
    """What this policy's move adds at least to the team's discounted return, in units of the reward.

    (Kuba et al. 2022, arXiv 2109.11251, lemma 6): L - C max KL, C = 4 γ max|A| / (1 - γ)², with the
    surrogate L estimated on the batch. Far below 0 for any step that is worth taking; without discount
    the lemma promises nothing, -∞.

    Args:
        deviation, largest: Standard deviation and largest |Â|, in units of the reward.
    """
    if gamma == 1:
        return torch.full_like(max_kl, -torch.inf)
    horizon = 1 / (1 - gamma)
    return horizon * (deviation * surrogate_gain - 4 * gamma * horizon * largest * max_kl)


@torch.no_grad()
def behaviour_gap(before: Evaluation, behaviour_logp: Tensor, active: Tensor) -> Tensor:
    """max |log-probability of the learner - of the sampler| over all learners' active rows."""
    return largest((before.log_prob - behaviour_logp).abs(), active)


@torch.no_grad()
def explained_variance(target: Tensor, value: Tensor, rows: JointRows) -> Tensor:
    """1 - Var(target - value) / Var(target): 1 is a perfect critic, 0 one that knows the mean."""

    def variance(x: Tensor) -> Tensor:
        mean = rows.all_reduce(rows.mean(x))
        return rows.all_reduce(rows.mean((x - mean).square()))

    return 1 - variance(target - value) / variance(target).clamp(min=1e-12)


def largest(values: Tensor, counted: Tensor, least: float = 0.0) -> Tensor:
    """The maximum of all learners' counted values, at least `least`."""
    counts = values[counted]
    return all_maximum(counts.max().clamp(min=least) if len(counts) else values.new_tensor(least))
