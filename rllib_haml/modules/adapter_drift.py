"""How far the agents of a team have drifted apart: from the backbone, and from one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.leading import leading
from rllib_haml.modules.lora_rank import spectrum


@dataclass(frozen=True)
class AdapterAudit:
    """N agents over one backbone with L adapted matrices.

    Attributes:
        agents: N names.
        layers: L names of parameters.
        relative_norm: (N, L) ‖ΔW‖ / ‖W‖, Frobenius, W the part of it that an agent with narrower spaces
            uses; 0 where an agent does not adapt a layer.
        stable_rank: (N, L) ‖ΔW‖² / σ₁(ΔW)², 0 where ΔW = 0.
        cosine: (N, N) of all differences as one vector, dense ones too, zeros where one agent does not reach;
            nan where one of the two is zero.
        divergence: (N, N) ½ (KL(i ‖ j) + KL(j ‖ i)) in nats, the mean over visited rows; None if not known.
        rank: (N,) directions that can learn, the mean over low-rank layers; nan without any.
        trainable: (N,) parameters that an agent trains, without those of directions that were dropped.
        stored_bytes: (N,) bytes that these take.
    """

    agents: tuple[str, ...]
    layers: tuple[str, ...]
    relative_norm: np.ndarray
    stable_rank: np.ndarray
    cosine: np.ndarray
    divergence: np.ndarray | None
    rank: np.ndarray
    trainable: np.ndarray
    stored_bytes: np.ndarray

    def metrics(self) -> dict[str, float]:
        """Means over agents and layers or over pairs of agents; what is not known is absent.

        Layers without a difference have no stable rank.
        """
        pairs = ~np.eye(len(self.agents), dtype=bool)
        return _known(
            adapter_relative_norm=self.relative_norm,
            adapter_stable_rank=_where_positive(self.stable_rank),
            adapter_rank=self.rank,
            adapter_trainable=self.trainable,
            adapter_stored_bytes=self.stored_bytes,
            adapter_cosine=self.cosine[pairs],
            adapter_divergence=None if self.divergence is None else self.divergence[pairs],
        )

    def by_agent(self) -> dict[str, dict[str, float]]:
        """The same of each agent; cosine and divergence are means over the others."""
        return {agent: self._of(i) for i, agent in enumerate(self.agents)}

    def _of(self, i: int) -> dict[str, float]:
        others = np.arange(len(self.agents)) != i
        return _known(
            adapter_relative_norm=self.relative_norm[i],
            adapter_relative_norm_max=self.relative_norm[i].max(initial=0.0),
            adapter_stable_rank=_where_positive(self.stable_rank[i]),
            adapter_rank=self.rank[i],
            adapter_trainable=self.trainable[i],
            adapter_stored_bytes=self.stored_bytes[i],
            adapter_cosine=self.cosine[i][others],
            adapter_divergence=None if self.divergence is None else self.divergence[i][others],
        )


def audit_adapters(adapters: Mapping[str, Adapter]) -> AdapterAudit:
    """Compares agents that are bound to one backbone, by their weights: without divergence.

    Args:
        adapters: By agent.

    Raises:
        ValueError: If they are bound to different backbones.
    """
    agents = list(adapters.values())
    backbone = agents[0].backbone
    if any(adapter.backbone is not backbone for adapter in agents):
        raise ValueError("These adapters are bound to different backbones.")
    weights = {name: p.detach().double() for name, p in backbone.named_parameters()}
    layers = [name for name in weights if any(_adapts(adapter, name) for adapter in agents)]
    norms, ranks = np.zeros((2, len(agents), len(layers)))
    for i, adapter in enumerate(agents):
        own = adapter.base_weights()
        for target in adapter.lora.targets:
            if target.name in layers:
                sizes = spectrum(adapter.lora, target)
                j, energy = layers.index(target.name), float(sizes.square().sum())
                norms[i, j] = energy**0.5 / float(own[target.name].detach().double().norm())
                ranks[i, j] = energy / float(sizes[0].square()) if energy else 0.0
    trainable = np.array([adapter.lora.num_live_parameters() for adapter in agents])
    return AdapterAudit(
        agents=tuple(adapters),
        layers=tuple(layers),
        relative_norm=norms,
        stable_rank=ranks,
        cosine=_cosines([_flat(adapter, weights) for adapter in agents]),
        divergence=None,
        rank=np.array([_rank(adapter) for adapter in agents]),
        trainable=trainable,
        stored_bytes=trainable * [_item_size(adapter) for adapter in agents],
    )


def _adapts(adapter: Adapter, name: str) -> bool:
    return any(target.name == name and len(target.shape) == 2 for target in adapter.lora.targets)


def _flat(adapter: Adapter, weights: Mapping[str, Tensor]) -> Tensor:
    """All differences as one vector, zeros for what this agent does not adapt or use; float64."""
    whole = {name: torch.zeros_like(w) for name, w in weights.items()}
    for name, delta in adapter.lora.deltas().items():
        leading(whole[name], delta.shape).copy_(delta.detach())
    return torch.cat([part.flatten() for part in whole.values()])


def _cosines(vectors: list[Tensor]) -> np.ndarray:
    stacked = torch.stack(vectors)
    unit = stacked / stacked.norm(dim=1, keepdim=True)
    return (unit @ unit.T).cpu().numpy()


@torch.no_grad()
def divergences(adapters: Sequence[Adapter], batch: Mapping[str, Any], visited: Tensor) -> np.ndarray:
    """(N, N) ½ (KL(i ‖ j) + KL(j ‖ i)) in nats, the mean over the rows of `batch` that were visited.

    Args:
        adapters: With equal spaces.
        batch: What the forwards take: observations under `obs`, (R, ...), or (B, T, ...) and `state_in` for
            recurrent policies; `action_mask` where there is one.
        visited: (R,) or (B, T) bool.
    """
    kind: Any = adapters[0].get_inference_action_dist_cls()
    # In float64: the KL of nearly equal policies is a small difference of large numbers.
    outputs = [
        a.forward_inference(dict(batch))[Columns.ACTION_DIST_INPUTS][visited].double() for a in adapters
    ]
    one_way = np.array([[float(kind.family.kl(p, q).mean()) for q in outputs] for p in outputs])
    return (one_way + one_way.T) / 2


def _item_size(module: torch.nn.Module) -> int:
    return next(module.parameters()).element_size()


def _rank(adapter: Adapter) -> float:
    ranks = list(adapter.lora.live_ranks().values())
    return float(np.mean(ranks)) if ranks else float("nan")


def _where_positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _known(**figures: Any) -> dict[str, float]:
    """The mean of what is no nan of each; without any, it is left out."""
    known = {
        key: values[~np.isnan(values)]
        for key, values in ((key, np.asarray(x)) for key, x in figures.items() if x is not None)
    }
    return {key: float(values.mean()) for key, values in known.items() if values.size}
