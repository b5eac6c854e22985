"""Adapters layer by layer, over all agents of a team."""

from __future__ import annotations

import numpy as np

from rllib_haml.modules.adapter_drift import AdapterAudit


def layer_table(audit: AdapterAudit) -> str:
    """One line for each layer: mean and largest over the agents that differ from the backbone there."""
    width = max([len("layer"), *map(len, audit.layers)])
    titles = ("|dW|/|W|", "largest", "st.rank", "largest")
    lines = [" ".join([f"{'layer':<{width}}", *(f"{title:>9}" for title in titles)])]
    for layer, norms, ranks in zip(audit.layers, audit.relative_norm.T, audit.stable_rank.T, strict=True):
        differs = norms > 0
        cells = [*_spread(norms[differs], 4), *_spread(ranks[differs], 2)]
        lines.append(" ".join([f"{layer:<{width}}", *cells]))
    return "\n".join(lines)


def _spread(values: np.ndarray, digits: int) -> list[str]:
    figures = (values.mean(), values.max()) if values.size else ()
    return [f"{figure:>9.{digits}f}" for figure in figures] or [f"{'-':>9}"] * 2
