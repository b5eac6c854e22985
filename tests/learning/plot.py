"""Plots learning curves with intervals over seeds, and prints final returns.

    python tests/learning/plot.py                      # all figures
    python tests/learning/plot.py --figure ant_4x2     # one of them

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
Lines = dict[str, tuple[str, str]]
MAPPOS = {"MAPPO, separate networks": "mappo_separate", "MAPPO, one network": "mappo_shared"}


def algorithms(task: str, experiment: str, others: dict[str, str]) -> Lines:
    """HAPPO and both MAPPOs on a task, with `others` (label -> name): where each one's curve lies."""
    lines = {"HAPPO": "happo", **others, **MAPPOS}
    names = {"mappo_separate": f"mappo-{experiment}", "mappo_shared": f"mappo-{experiment}-shared"}
    return {
        label: (f"{task}_{name}.csv", names.get(name, f"{name}-{experiment}"))
        for label, name in lines.items()
    }


HALFCHEETAH = algorithms(
    "halfcheetah_2x3", "halfcheetah-2x3", {"HATRPO": "hatrpo", "HAA2C": "haa2c", "A2PO": "a2po"}
)
TASK, LORASA = "halfcheetah-2x3", "halfcheetah_2x3_lorasa"
FIGURES: dict[str, dict[str, Lines]] = {
    "halfcheetah_2x3": {
        "HalfCheetah 2x3, agent_obsk: 1": {
            "rllib_haml": ("halfcheetah_2x3_local.csv", "happo-halfcheetah-2x3"),
            "reference implementation": ("halfcheetah_2x3_reference.csv", "local"),
            "shuffled advantages (control)": (
                "halfcheetah_2x3_shuffled.csv",
                "happo-halfcheetah-2x3-shuffled",
            ),
        },
        "HalfCheetah 2x3, observation: full, standardised": {
            "rllib_haml": ("halfcheetah_2x3_full.csv", "happo-halfcheetah-2x3-full"),
            "reference implementation": ("halfcheetah_2x3_reference.csv", "full_standardised"),
        },
    },
    "halfcheetah_2x3_algorithms": {
        "HalfCheetah 2x3, agent_obsk: 1": {
            **HALFCHEETAH,
            "HAPPO": ("halfcheetah_2x3_local.csv", "happo-halfcheetah-2x3"),
            "MAPPO, one network": ("halfcheetah_2x3_mappo_shared.csv", "mappo-halfcheetah-2x3-shared-local"),
        },
    },
    "halfcheetah_2x3_tuned": {
        "HalfCheetah 2x3, agent_obsk: 1": {
            "HAPPO": ("halfcheetah_2x3_local.csv", f"happo-{TASK}"),
            "HAPPO, clip_param 0.2": (
                "halfcheetah_2x3_tuned.csv",
                f"happo-{TASK} num_epochs=15 clip_param=0.2",
            ),
            "A2PO, clip_param 0.2": (
                "halfcheetah_2x3_tuned.csv",
                f"a2po-{TASK} num_epochs=15 clip_param=0.2",
            ),
            "HAA2C": ("halfcheetah_2x3_haa2c.csv", f"haa2c-{TASK}"),
            "HAA2C, one epoch": ("halfcheetah_2x3_tuned.csv", f"haa2c-{TASK} num_epochs=1 lr=1e-3"),
        }
    },
    "lorasa": {
        "HalfCheetah 2x3, 1M steps": {
            "one network, then adapters (HAPPO)": (f"{LORASA}.csv", f"lorasa-{TASK}"),
            "one network, then adapters (MAPPO)": (f"{LORASA}_mappo.csv", f"lorasa-{TASK}-simultaneous"),
            "one network, continued with a new optimizer": (f"{LORASA}_continued.csv", f"lorasa-{TASK}"),
            "one network (MAPPO)": ("halfcheetah_2x3_mappo_shared.csv", f"mappo-{TASK}-shared-local"),
            "separate networks (MAPPO)": ("halfcheetah_2x3_mappo_separate.csv", f"mappo-{TASK}"),
        },
        "rank, adapters (HAPPO) from 25 %": {
            "rank 2": (f"{LORASA}_rank_2.csv", f"lorasa-{TASK}"),
            "rank 8": (f"{LORASA}.csv", f"lorasa-{TASK}"),
            "rank 16": (f"{LORASA}_rank_16.csv", f"lorasa-{TASK}"),
        },
        "switch, adapters (HAPPO) of rank 8": {
            "from 10 %": (f"{LORASA}_from_10.csv", f"lorasa-{TASK}"),
            "from 25 %": (f"{LORASA}.csv", f"lorasa-{TASK}"),
            "from 50 %": (f"{LORASA}_from_50.csv", f"lorasa-{TASK}"),
        },
    },
    "lorasa_ant": {
        "Ant 4x2, 500k steps": {
            "one network, then adapters (HAPPO)": ("ant_4x2_lorasa.csv", "lorasa-ant-4x2"),
            "one network (MAPPO)": ("ant_4x2_mappo_shared.csv", "mappo-ant-4x2-shared"),
            "separate networks (MAPPO)": ("ant_4x2_mappo_separate.csv", "mappo-ant-4x2"),
            "separate networks (HAPPO)": ("ant_4x2_happo.csv", "happo-ant-4x2"),
        },
    },
    "ant_4x2": {"Ant 4x2, agent_obsk: 1": algorithms("ant_4x2", "ant-4x2", {})},
    "mpe_spread": {
        "MPE spread, discrete": algorithms("mpe_spread", "mpe-spread", {}),
        "MPE spread, continuous": algorithms("mpe_spread_continuous", "mpe-spread-continuous", {}),
    },
    "smax_3m": {"SMAX 3m": algorithms("smax_3m", "smax-3m", {})},
}


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


def plot(name: str) -> None:
    """Draws a figure into the results, and prints its final returns."""
    panels = FIGURES[name]
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4), sharey=True, squeeze=False)
    for axis, (panel, lines) in zip(axes[0], panels.items(), strict=True):
        for colour, (label, source) in enumerate(lines.items()):
            if not (RESULTS / source[0]).exists():
                print(f"{panel:50s} {label:30s} not measured")
                continue
            steps, returns = curves(*source)
            low, high = bootstrap(returns)
            axis.plot(
                steps / 1e6, returns.mean(0), label=f"{label} ({len(returns)} seeds)", color=f"C{colour}"
            )
            axis.fill_between(steps / 1e6, low, high, alpha=0.2, color=f"C{colour}", linewidth=0)
            final = returns[:, steps > 0.9 * steps[-1]].mean(1)
            interval = bootstrap(final[:, None])[:, 0]
            print(
                f"{panel:50s} {label:30s} final {final.mean():8.1f}  95 % {interval[0]:.1f} to "
                f"{interval[1]:.1f}  seeds {', '.join(f'{value:.1f}' for value in final)}"
            )
        axis.set(title=panel, xlabel="env steps (millions)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    axes[0][0].set_ylabel("team return")
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--figure", choices=FIGURES, help="only this one")
    args = parser.parse_args()
    for name in [args.figure] if args.figure else FIGURES:
        plot(name)


if __name__ == "__main__":
    main()
