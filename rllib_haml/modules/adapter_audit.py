"""How far the agents of a team have drifted apart: from the backbone, and from one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.lora_rank import spectrum


@dataclass(frozen=True)
class AdapterAudit:
    """N agents over one backbone with L adapted matrices.

    Attributes:
        agents: N names.
        layers: L names of parameters.
        relative_norm: (N, L) ‖ΔW‖ / ‖W‖, Frobenius; 0 where an agent does not adapt a layer.
        stable_rank: (N, L) ‖ΔW‖² / σ₁(ΔW)², 0 where ΔW = 0.
        cosine: (N, N) of all differences as one vector, dense ones too; nan where one of the two is zero.
        divergence: (N, N) ½ (KL(i ‖ j) + KL(j ‖ i)) in nats, the mean over the rows given; None without any.
        trainable: (N,) numbers that an agent trains.
        stored_bytes: (N,) bytes of its state.
        backbone_bytes: Bytes of the backbone's.
    """

    agents: tuple[str, ...]
    layers: tuple[str, ...]
    relative_norm: np.ndarray
    stable_rank: np.ndarray
    cosine: np.ndarray
    divergence: np.ndarray | None
    trainable: np.ndarray
    stored_bytes: np.ndarray
    backbone_bytes: int

    def metrics(self) -> dict[str, float]:
        """Means over agents and layers or over pairs of agents; what needs a pair is absent without one."""
        pairs = ~np.eye(len(self.agents), dtype=bool)
        found = {
            "adapter_relative_norm": self.relative_norm.mean(),
            "adapter_stable_rank": self.stable_rank.mean(),
            "adapter_trainable": self.trainable.mean(),
            "adapter_stored_bytes": self.stored_bytes.mean(),
        }
        cosines = self.cosine[pairs & np.isfinite(self.cosine)]
        found |= {"adapter_cosine": cosines.mean()} if cosines.size else {}
        if self.divergence is not None and pairs.any():
            found["adapter_divergence"] = self.divergence[pairs].mean()
        return {key: float(value) for key, value in found.items()}

    def table(self) -> str:
        """One line for each agent; cosine and divergence are means over the others."""
        left = f"{'agent':<16} {'|dW|/|W|':>9} {'largest':>9} {'st.rank':>8} "
        right = f"{'cosine':>7} {'KL':>9} {'numbers':>9} {'KiB':>8}"
        return "\n".join([left + right, *(self._line(i, agent) for i, agent in enumerate(self.agents))])

    def _line(self, i: int, agent: str) -> str:
        others = np.arange(len(self.agents)) != i
        divergence = None if self.divergence is None else self.divergence[i][others]
        return (
            f"{agent:<16} {self.relative_norm[i].mean():>9.4f} {self.relative_norm[i].max():>9.4f} "
            f"{self.stable_rank[i].mean():>8.2f} {_mean(self.cosine[i][others]):>7} {_mean(divergence):>9} "
            f"{self.trainable[i]:>9} {self.stored_bytes[i] / 1024:>8.1f}"
        )


def audit_adapters(adapters: Mapping[str, Adapter], batch: Mapping[str, Any] | None = None) -> AdapterAudit:
    """Compares agents that are bound to one backbone.

    Args:
        adapters: By agent.
        batch: What the forwards take: observations under `obs`, (R, ...), or (B, T, ...) and `state_in` for
            policies that remember; `action_mask` where there is one. Every row counts: give visited ones
            only. None: no divergence.

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
        for target in adapter.lora.targets:
            if target.name in layers:
                sizes = spectrum(adapter.lora, target)
                j, energy = layers.index(target.name), float(sizes.square().sum())
                norms[i, j] = energy**0.5 / float(weights[target.name].norm())
                ranks[i, j] = energy / float(sizes[0].square()) if energy else 0.0
    return AdapterAudit(
        agents=tuple(adapters),
        layers=tuple(layers),
        relative_norm=norms,
        stable_rank=ranks,
        cosine=_cosines([_flat(adapter, weights) for adapter in agents]),
        divergence=None if batch is None else _divergences(agents, batch),
        trainable=np.array([sum(p.numel() for p in a.parameters() if p.requires_grad) for a in agents]),
        stored_bytes=np.array([_bytes(adapter) for adapter in agents]),
        backbone_bytes=_bytes(backbone),
    )


def plot_audit(audit: AdapterAudit, path: str | Path) -> None:
    """Writes a picture: agents × layers of ‖ΔW‖ / ‖W‖, agents × agents of cosine and divergence.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message says what to type.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'this picture needs {error.name}, which is not installed: pip install "rllib-haml[plots]"',
            name=error.name,
        ) from error
    panels = [
        ("‖ΔW‖ / ‖W‖", audit.relative_norm, audit.layers, {"cmap": "viridis", "vmin": 0}),
        ("cosine of differences", audit.cosine, audit.agents, {"cmap": "coolwarm", "vmin": -1, "vmax": 1}),
    ]
    if audit.divergence is not None:
        panels.append(
            ("divergence of policies, nats", audit.divergence, audit.agents, {"cmap": "magma", "vmin": 0})
        )
    size = 2 + 0.25 * max(len(audit.agents), len(audit.layers))
    figure = Figure(figsize=(len(panels) * (size + 1.5), size + 1), layout="constrained")
    for axes, (title, values, columns, colours) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        image = axes.imshow(values, aspect="auto", **colours)
        axes.set_title(title)
        axes.set_yticks(range(len(audit.agents)), audit.agents)
        axes.set_xticks(range(len(columns)), columns, rotation=90)
        figure.colorbar(image, ax=axes)
    figure.savefig(path)


def _adapts(adapter: Adapter, name: str) -> bool:
    return any(target.name == name and len(target.shape) == 2 for target in adapter.lora.targets)


def _flat(adapter: Adapter, weights: Mapping[str, Tensor]) -> Tensor:
    """All differences as one vector, zeros for parameters that this agent does not adapt; float64."""
    deltas = adapter.lora.deltas()
    parts = [
        deltas[name].detach().double() if name in deltas else torch.zeros_like(w)
        for name, w in weights.items()
    ]
    return torch.cat([part.flatten() for part in parts])


def _cosines(vectors: list[Tensor]) -> np.ndarray:
    stacked = torch.stack(vectors)
    unit = stacked / stacked.norm(dim=1, keepdim=True)
    return (unit @ unit.T).cpu().numpy()


@torch.no_grad()
def _divergences(adapters: list[Adapter], batch: Mapping[str, Any]) -> np.ndarray:
    family = adapters[0].backbone.head.family
    # In float64: the KL of nearly equal policies is a small difference of large numbers.
    outputs = [a.forward_inference(dict(batch))[Columns.ACTION_DIST_INPUTS].double() for a in adapters]
    one_way = np.array([[float(family.kl(p, q).mean()) for q in outputs] for p in outputs])
    return (one_way + one_way.T) / 2


def _bytes(module: torch.nn.Module) -> int:
    return sum(x.numel() * x.element_size() for x in module.state_dict().values())


def _mean(values: np.ndarray | None) -> str:
    known = np.array([]) if values is None else values[np.isfinite(values)]
    return f"{known.mean():.4f}" if known.size else "-"
