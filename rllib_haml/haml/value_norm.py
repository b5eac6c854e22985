"""Running normalisation of value targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rllib_haml.haml.rows import alone


class ValueNorm(nn.Module):
    """Debiased running mean and variance of the returns (Yu et al. 2022, arXiv 2103.01955, section 5.1).

    mean_k = Σ_j (1-β) β^{k-j} m_j / (1 - β^k) over batch means m_j, likewise the mean square; with β
    this close to 1 it is nearly the plain average over all batches. Statistics are float64 buffers, so
    that a checkpoint of the module holds them. Unlike PopArt it does not rescale output weights.

    Args:
        beta: β.
        min_variance: Floor of the variance.
    """

    mean_sum: Tensor
    square_sum: Tensor
    debias: Tensor

    def __init__(self, beta: float = 0.99999, min_variance: float = 1e-2):
        super().__init__()
        self.beta, self.min_variance = beta, min_variance
        for name in ("mean_sum", "square_sum", "debias"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, returns: Tensor, all_reduce: Callable[[Tensor], Tensor] = alone) -> None:
        """Takes in one batch; one without any return leaves all as it was.

        Args:
            returns: Of any shape, in the reward's units; this learner's part of the batch.
            all_reduce: Sums over learners, so that all of them see the moments of the whole batch.
        """
        x = returns.double()
        moments = torch.stack([x.sum(), x.square().sum(), x.new_tensor(x.numel())])
        total, squares, count = all_reduce(moments)
        new = (count > 0) * torch.full_like(count, 1 - self.beta)
        count = count.clamp(min=1)
        for mean, value in (
            (self.mean_sum, total / count),
            (self.square_sum, squares / count),
            (self.debias, torch.ones_like(count)),
        ):
            mean.lerp_(value, new)

    def mean_var(self) -> tuple[Tensor, Tensor]:
        """Mean and variance so far, float64 scalars; before any update 0 and the variance floor."""
        debias = torch.where(self.debias > 0, self.debias, 1)
        mean = self.mean_sum / debias
        return mean, (self.square_sum / debias - mean.square()).clamp(min=self.min_variance)

    def normalise(self, returns: Tensor) -> Tensor:
        mean, var = self.mean_var()
        return ((returns - mean) / var.sqrt()).to(returns.dtype)

    def denormalise(self, normalised: Tensor) -> Tensor:
        mean, var = self.mean_var()
        return (normalised * var.sqrt() + mean).to(normalised.dtype)
