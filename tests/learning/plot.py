"""Plots learning curves with intervals over seeds, and prints final returns.

    python tests/learning/plot.py --out tests/learning/results/halfcheetah_2x3.png

Final return: the mean over a seed's rows after 90 % of its steps. Bands and intervals are 95 % bootstrap
intervals of the mean over seeds.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

RESULTS = Path(__file__).parent / "results"
PANELS = {
    "agent_obsk: 1": {
        "rllib_haml": ("halfcheetah_2x3_local.csv", "happo-halfcheetah-2x3"),
        "reference implementation": ("halfcheetah_2x3_reference.csv", "local"),
        "shuffled advantages (control)": ("halfcheetah_2x3_shuffled.csv", "happo-halfcheetah-2x3-shuffled"),
    },
    "observation: full, standardised": {
        "rllib_haml": ("halfcheetah_2x3_full.csv", "happo-halfcheetah-2x3-full"),
        "reference implementation": ("halfcheetah_2x3_reference.csv", "full_standardised"),
    },
}
COLOURS = ("tab:blue", "tab:orange", "tab:grey")


def curves(file: str, experiment: str) -> tuple[np.ndarray, np.ndarray]:
    """Env steps (P,) and returns (seeds, P)."""
    by_seed: dict[int, dict[int, float]] = defaultdict(dict)
    with (RESULTS / file).open(newline="") as handle:
        reader = csv.reader(handle)
        next(reader)
        for name, seed, steps, value in reader:
            if name == experiment:
                by_seed[int(seed)][int(steps)] = float(value)
    steps = sorted(set.intersection(*(set(curve) for curve in by_seed.values())))
    return np.array(steps), np.array([[curve[s] for s in steps] for _, curve in sorted(by_seed.items())])


def bootstrap(values: np.ndarray, draws: int = 10_000) -> np.ndarray:
    """(seeds, P) → (2, P): 95 % interval of the mean over seeds."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(values), size=(draws, len(values)))
    return np.quantile(values[picks].mean(1), [0.025, 0.975], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 4), sharey=True)
    for axis, (panel, lines) in zip(axes, PANELS.items(), strict=True):
        for colour, (label, source) in zip(COLOURS, lines.items(), strict=False):
            steps, returns = curves(*source)
            low, high = bootstrap(returns)
            axis.plot(steps / 1e6, returns.mean(0), label=f"{label} ({len(returns)} seeds)", color=colour)
            axis.fill_between(steps / 1e6, low, high, alpha=0.25, color=colour, linewidth=0)
            final = returns[:, steps > 0.9 * steps[-1]].mean(1)
            interval = bootstrap(final[:, None])[:, 0]
            print(
                f"{panel:32s} {label:30s} final {final.mean():7.0f}  95 % {interval[0]:.0f} to "
                f"{interval[1]:.0f}  seeds {', '.join(f'{value:.0f}' for value in final)}"
            )
        axis.set(title=f"HalfCheetah 2x3, {panel}", xlabel="env steps (millions)")
        axis.grid(alpha=0.3)
        axis.legend(loc="upper left", fontsize=8)
    axes[0].set_ylabel("team return")
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
