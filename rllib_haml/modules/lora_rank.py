"""Rank that adapts: as many directions for each layer of each agent as its differences turned out to need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rllib_haml.modules.lora import LoRA
from rllib_haml.modules.lora_config import LoRAConfig, exactly
from rllib_haml.modules.lora_targets import Target

# Of σ₁(ΔW). Beside weights of the order of 1, float32 rounds smaller differences away.
NEGLIGIBLE = 1e-6


def spectrum(lora: LoRA, target: Target) -> Tensor:
    """Singular values of the difference ΔW of a matrix, float64, descending; of a factored one its r only.

    nan throughout, if ΔW is not finite.
    """
    if target.rank is None:
        return _singular_values(lora.dense(target).detach().double())
    a, b = (factor.detach().double() for factor in lora.factors(target))
    inner = torch.linalg.qr(b).R @ torch.linalg.qr(a.T).R.T
    return target.scaling * _singular_values(inner)


def _singular_values(matrix: Tensor) -> Tensor:
    if matrix.isfinite().all():
        return torch.linalg.svdvals(matrix)
    return matrix.new_full((min(matrix.shape),), torch.nan)


def kept_ranks(loras: Sequence[LoRA], *, energy: float, budget: int | None = None) -> list[dict[Target, int]]:
    """The least ranks that keep `energy` of each low-rank difference, within a budget over all agents.

    Where the budget is short, directions are kept in the descending order of σ² per parameter that they
    take, over all layers and agents. Every layer keeps one. Dense differences remain as they are.

    A difference that is zero, up to rounding, or not finite says nothing about the directions that its layer
    needs: it keeps all, and takes that of one from the budget until it has moved.

    Args:
        energy: Share of ‖ΔW‖² (Frobenius) that a layer keeps at least, in (0, 1].
        budget: Trainable parameters of all agents together, dense ones included; None: no limit.

    Returns:
        For each agent the rank of each low-rank difference.

    Raises:
        ValueError: `energy` is out of its range, or the budget does not hold one direction for each layer.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy={energy}: expected a share above 0, at most 1.")
    layers = [
        _Layer(i, target, target.rank, spectrum(lora, target).square())
        for i, lora in enumerate(loras)
        for target in lora.targets
        if target.rank is not None
    ]
    wanted = [layer.rank_of(energy) for layer in layers]
    dense = sum(t.num_parameters for lora in loras for t in lora.targets if t.rank is None)
    ranks = wanted if budget is None else _within(layers, wanted, budget - dense, dense)
    return [
        {layer.target: rank for layer, rank in zip(layers, ranks, strict=True) if layer.agent == i}
        for i in range(len(loras))
    ]


@dataclass
class _Layer:
    agent: int
    target: Target
    rank: int
    energies: Tensor

    @property
    def has_moved(self) -> bool:
        return NEGLIGIBLE**2 < float(self.energies[0]) < torch.inf

    @property
    def cost(self) -> int:
        """Parameters that one direction takes."""
        return sum(self.target.shape)

    def rank_of(self, share: float) -> int:
        if not self.has_moved:
            return self.rank
        kept = self.energies.cumsum(0)
        return min(int((kept < share * kept[-1]).sum()) + 1, len(kept))


def _within(layers: list[_Layer], wanted: list[int], budget: int, dense: int) -> list[int]:
    left = budget - sum(layer.cost for layer in layers)
    if left < 0:
        raise ValueError(
            f"budget={budget + dense}: one direction for each layer and the dense differences take "
            f"{budget + dense - left} parameters."
        )
    ranks = [1 if layer.has_moved else layer.rank for layer in layers]
    further = [
        (-float(layer.energies[k]) / layer.cost, i, k)
        for i, layer in enumerate(layers)
        for k in range(ranks[i], wanted[i])
    ]
    for _, i, k in sorted(further):
        if layers[i].cost <= left and ranks[i] == k:
            ranks[i] += 1
            left -= layers[i].cost
    return ranks


def with_ranks(config: LoRAConfig, ranks: Mapping[Target, int]) -> LoRAConfig:
    """`config` with these ranks of these layers, at the scaling that each has now."""
    own = {exactly(target.module): rank for target, rank in ranks.items()}
    alphas = {exactly(target.module): config.alpha_of(target.scaling, rank) for target, rank in ranks.items()}
    # The first key that matches counts: these stand before the others, and replace what they repeat.
    return replace(
        config,
        rank_pattern={**own, **config.rank_pattern, **own},
        alpha_pattern={**alphas, **config.alpha_pattern, **alphas},
    )
