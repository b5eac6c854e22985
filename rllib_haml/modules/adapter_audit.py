"""The audit of a team's adapters for people to read: as a table, and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rllib_haml.modules.adapter_drift import AdapterAudit

# Column of the table: its width and decimals, the metric, and what one of its units is.
_COLUMNS = {
    "|dW|/|W|": (9, 4, "adapter_relative_norm", 1),
    "largest": (9, 4, "adapter_relative_norm_max", 1),
    "st.rank": (8, 2, "adapter_stable_rank", 1),
    "cosine": (7, 4, "adapter_cosine", 1),
    "KL": (9, 6, "adapter_divergence", 1),
    "rank": (6, 2, "adapter_rank", 1),
    "params": (9, 0, "adapter_trainable", 1),
    "KiB": (8, 1, "adapter_stored_bytes", 1024),
}


def audit_table(by_agent: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for each agent, from the figures of `AdapterAudit.by_agent`."""
    lines = [" ".join([f"{'agent':<16}", *(f"{title:>{width}}" for title, (width, *_) in _COLUMNS.items())])]
    for agent, figures in by_agent.items():
        cells = [
            f"{figures[key] / unit:>{width}.{digits}f}" if key in figures else f"{'-':>{width}}"
            for width, digits, key, unit in _COLUMNS.values()
        ]
        lines.append(" ".join([f"{agent:<16}", *cells]))
    return "\n".join(lines)


def plot_audit(audit: AdapterAudit, path: str | Path) -> None:
    """Writes a picture: agents × layers of norms and stable ranks, agents × agents of cosine and divergence.

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
        ("stable rank of ΔW", audit.stable_rank, audit.layers, {"cmap": "viridis", "vmin": 0}),
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
