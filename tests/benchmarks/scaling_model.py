"""A model of an iteration's time, fitted to the table of `scaling.py`, and its plot.

    python tests/benchmarks/scaling_model.py tests/benchmarks/results/scaling.csv

Seconds, for R env runners, L learners, N agents, S joint steps, F and W bytes of fragments and weights:

    sampling  a₀ + S/R (a₁ + a₂ N)                  CPU of one env runner, sending its fragments included
    transfer  b₁ R + b₂ F                           CPU of the driver, which unpacks all fragments
    update    N (k (c₀ + c₁ S/max(L, 1)) + c₂ log₂ max(L, 1)) + c₃ L + c₄ F (L > 0)
                                                    wall time: policies move one after another; c₂ is what a
                                                    policy's collectives wait, c₃ and c₄ hand the fragments on
    critic    d₀ + S/max(L, 1) (d₁ + d₂ N)          CPU of one learner
    sync      e₀ + e₁ R + e₂ W                      wall time
    rest      f₀ + f₁ N                             wall time: metrics

No coefficient is negative, each line is fitted to relative errors, and k = max(1, L / C) learners share one
of the C cores. An iteration is then

    max(sampling, critic, (R sampling + L critic) / C) + update + transfer + sync + rest

since env runners sample while the critic is fitted, and who has no core of its own waits for one. So much for
cells with more processes than cores; the prediction is for a core for every process.

What the prediction assumes beyond the cells that were measured: 10 Gbit/s between nodes, crossed by F twice
and by W once for each env runner; collectives between nodes that wait as long as here, and among more
learners as log₂ L (measured up to 4); networks, epochs, sub-environments and an environment as measured.
`leave one out` is what the model says of each cell when it is fitted to the others.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import nnls

Row = Mapping[str, float]
NETWORK = 1.25e9  # bytes per second between nodes


def _share(row: Row) -> float:
    """Joint steps of one learner."""
    return row["steps"] / max(row["learners"], 1)


def _moves(row: Row) -> tuple[float, ...]:
    """Each agent's, one after another."""
    learners = max(row["learners"], 1)
    crowd = max(1, learners / row["cores"])
    return tuple(row["agents"] * x for x in (crowd, crowd * _share(row), np.log2(learners)))


# Of each stage: what was measured, and what it is linear in.
STAGES: dict[str, tuple[str, Callable[[Row], Sequence[float]]]] = {
    "sampling": ("cpu_runner", lambda r: (1, *(r["steps"] / r["runners"] * n for n in (1, r["agents"])))),
    "transfer": ("transfer", lambda r: (r["runners"], r["fragment_bytes"])),
    "update": ("update", lambda r: (*_moves(r), r["learners"], r["fragment_bytes"] * (r["learners"] > 0))),
    "critic": ("cpu_critic", lambda r: (1, _share(r), _share(r) * r["agents"])),
    "sync": ("sync", lambda r: (1, r["runners"], r["weight_bytes"])),
    "rest": ("rest", lambda r: (1, r["agents"])),
}
Model = dict[str, np.ndarray]


def fitted(rows: Sequence[Row]) -> Model:
    model = {}
    for stage, (target, terms) in STAGES.items():
        measured = np.array([row[target] for row in rows])
        design = np.array([terms(row) for row in rows], float) / measured[:, None]
        scale = np.abs(design).max(0)
        model[stage] = nnls(design / scale, np.ones(len(rows)))[0] / scale
    return model


def stage_seconds(model: Model, row: Row) -> dict[str, float]:
    return {stage: float(np.dot(terms(row), model[stage])) for stage, (_, terms) in STAGES.items()}


def iteration(model: Model, row: Row) -> float:
    """Seconds of an iteration; `cores` and `network` of the row may be infinite."""
    s, runners, learners = stage_seconds(model, row), row["runners"], max(row["learners"], 1)
    cores, network = row["cores"], row.get("network", np.inf)
    crowded = (runners * s["sampling"] + learners * s["critic"]) / cores
    sampling = max(s["sampling"], s["critic"], crowded)
    wire = (2 * row["fragment_bytes"] + runners * row["weight_bytes"]) / network
    return sampling + s["update"] + s["transfer"] + s["sync"] + s["rest"] + wire


def imagined(rows: Sequence[Row], runners: int, learners: int, agents: int, steps: int) -> dict[str, float]:
    """A cell on as many cores as it has processes; bytes per agent step and per agent as measured."""
    largest = max(rows, key=lambda row: row["agents"])
    return {
        "runners": runners,
        "learners": learners,
        "agents": agents,
        "steps": steps,
        "cores": np.inf,
        "network": NETWORK,
        "fragment_bytes": largest["fragment_bytes"] / largest["steps"] / largest["agents"] * steps * agents,
        "weight_bytes": largest["weight_bytes"] / largest["agents"] * agents,
    }


def report(table: Path) -> None:
    """Prints coefficients, errors and predictions; draws them beside the table."""
    with table.open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    model = fitted(rows)
    for stage in STAGES:
        left_out = [_left_out(rows, i, stage) for i in range(len(rows))]
        figures = ", ".join(f"{x:.2e}" for x in model[stage])
        print(f"{stage:9s} {figures:45s} leave one out {_spread(left_out)}")
    said = [iteration(_without(rows, i), row) for i, row in enumerate(rows)]
    wall = [seconds / row["iteration"] - 1 for seconds, row in zip(said, rows, strict=True)]
    print(f"iteration on {rows[0]['cores']:.0f} cores: leave one out {_spread(wall)}")
    for name, row in _predictions(rows).items():
        seconds = iteration(model, row)
        print(f"{name}: {seconds:.2f} s, {row['steps'] / seconds:,.0f} steps/s", end="; ")
        print(", ".join(f"{k} {v:.3f}" for k, v in stage_seconds(model, row).items()))
    for kind in ("fragment", "weight"):
        ratio = [row[f"{kind}_bytes"] / row[f"{kind}_needed"] for row in rows]
        print(f"{kind} bytes sent / that must move: {min(ratio):.3f} to {max(ratio):.3f}")
    _draw(table.with_suffix(".png"), rows, model, said, _spread(wall))


def _without(rows: Sequence[Row], i: int) -> Model:
    return fitted([row for j, row in enumerate(rows) if j != i])


def _left_out(rows: Sequence[Row], i: int, stage: str) -> float:
    return stage_seconds(_without(rows, i), rows[i])[stage] / rows[i][STAGES[stage][0]] - 1


def _spread(errors: Sequence[float]) -> str:
    size = np.abs(errors)
    return f"±{np.median(size):.0%} (median), {size.max():.0%} at most"


def _predictions(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    steps = 25_600
    return {
        f"{r} env runners x {n_learners} learners, N = {n}": imagined(rows, r, n_learners, n, steps)
        for n in (4, 100)
        for r, n_learners in ((1, 1), (8, 1), (64, 1), (64, 8))
    }


def _draw(path: Path, rows: Sequence[Row], model: Model, said: Sequence[float], error: str) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(13, 10))
    _draw_shares(axes[0, 0], rows)
    _draw_agreement(axes[0, 1], rows, said, error)
    _draw_runners(axes[1, 0], rows, model)
    _draw_agents(axes[1, 1], rows, model)
    cores = rows[0]["cores"]
    figure.text(
        0.01,
        0.01,
        f"Measured on {cores:.0f} cores. Dashed: predicted by the model, not measured.\n"
        "Assumed: a core for every process, 10 Gbit/s between nodes, collectives that wait as log2 of the "
        "learners,\nand networks (64x64), epochs (five, of the whole batch), sub-environments (4) and an "
        "environment as measured.",
        fontsize=9,
    )
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=110)


def _label(row: Row) -> str:
    return f"{row['runners']:.0f}×{row['learners']:.0f}, N={row['agents']:.0f}, S={row['steps']:.0f}"


def _draw_shares(ax: Any, rows: Sequence[Row]) -> None:
    start = np.zeros(len(rows))
    for stage in ("sampling", "transfer", "update", "sync", "critic", "rest"):
        part = np.array([max(row[stage], 0) / row["iteration"] for row in rows])
        ax.barh(range(len(rows)), part, left=start, label=stage)
        start += part
    ax.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=7)
    ax.invert_yaxis()
    ax.set(title="measured: share of an iteration (env runners×learners, 0: the driver)", xlim=(0, 1))
    ax.legend(ncols=6, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.05))


def _draw_agreement(ax: Any, rows: Sequence[Row], said: Sequence[float], error: str) -> None:
    found = [row["iteration"] for row in rows]
    ends = [0.8 * min(*said, *found), 1.2 * max(*said, *found)]
    ax.loglog(ends, ends, color="grey", lw=1)
    ax.loglog(found, said, "o")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    ax.set(
        title=f"leave one out: {error}", xlabel="measured, s per iteration", ylabel="model of the others, s"
    )


def _draw_runners(ax: Any, rows: Sequence[Row], model: Model) -> None:
    runners = 2 ** np.arange(7)
    for agents in (4, 100):
        for learners in (1, 8):
            cells = [imagined(rows, int(r), learners, agents, 25_600) for r in runners]
            rate = [cell["steps"] / iteration(model, cell) for cell in cells]
            ax.loglog(runners, rate, "--", label=f"predicted, {learners} learners, N={agents}, S=25,600")
    for learners in (0, 1, 2):
        cells = [r for r in rows if (r["learners"], r["agents"], r["steps"]) == (learners, 4, 1600)]
        cells.sort(key=lambda row: row["runners"])
        x, y = [r["runners"] for r in cells], [r["steps_per_s"] for r in cells]
        ax.loglog(x, y, "o-", label=f"measured, {learners} learners, N=4, S=1,600")
    ax.set(title="speed", xlabel="env runners", ylabel="env steps per second")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.legend(fontsize=7)


def _draw_agents(ax: Any, rows: Sequence[Row], model: Model) -> None:
    agents = np.array([2, 4, 8, 16, 32, 64, 100])
    cells = [row for row in rows if (row["runners"], row["learners"], row["steps"]) == (1, 0, 1600)]
    cells.sort(key=lambda row: row["agents"])
    for stage, (target, _) in STAGES.items():
        said = [stage_seconds(model, imagined(rows, 1, 0, int(n), 1600))[stage] for n in agents]
        (line,) = ax.loglog(agents, said, "--", label=stage)
        ax.loglog([r["agents"] for r in cells], [r[target] for r in cells], "o", color=line.get_color())
    ax.set(title="one env runner, the driver learns", xlabel="agents", ylabel="s per iteration")
    ax.legend(fontsize=7)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", type=Path)
    report(parser.parse_args().table)
