"""Every kind of action space × masks × memory × every on-policy algorithm, on games with a known optimum.

    nice -n 10 python tests/learning/grid.py --out tests/learning/results/grid.csv

Each row of the CSV is one run: after how many env steps the mean score of the last 200 steps of each
sub-environment reached 95 % of the optimum, or the last score where it did not within `--steps`. Runs
that the file already has are not repeated, so an interrupted grid goes on. A GRU plays the game in which the
answer is due a step after its cue. Two controls may not leave chance: `--shuffled`, paid the scores of other
steps, and `--networks forgetful`, an MLP where a memory is needed. `--summary` prints the file as a table.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from matching_game import KINDS, MatchingGame, options
from ray.tune.registry import register_env

import rllib_haml
from rllib_haml import HAMLConfig

OPTIMUM, ENOUGH = 1.0, 0.95
FIELDS = [
    "algorithm",
    "kind",
    "masked",
    "network",
    "shuffled",
    "seed",
    "reached_at",
    "score",
    "gap",
    "seconds",
]
# The scores are of sampled actions: with RLlib's usual spread no real number would be exact enough.
MODEL: dict[str, Any] = {"fcnet_hiddens": [32, 32], "head_gain": 0.1, "initial_std": 0.15}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "gru": {"use_gru": True, "lstm_cell_size": 32},
    "forgetful": {},
}
# What differs from `lr: 0.003`. A ball has no learning rate. Without a clip that rate leaves the optimum of
# real actions, and fixes a wrong answer to a cue early; so do adapters without an entropy bonus.
SETTINGS: dict[str, dict[str, Any]] = {
    "HATRPO": {},
    "HAA2C": {"lr": 1e-3},
    "HAKL": {"lr": 1e-3},
    "LoRASA": {"lr": 3e-3, "entropy_coeff": 0.01},
}


def algorithms() -> list[str]:
    """The names of all on-policy algorithms, but the bare template."""
    configs = {name: getattr(rllib_haml, f"{name}Config", None) for name in rllib_haml.__all__}
    return sorted(
        name
        for name, config in configs.items()
        if isinstance(config, type) and issubclass(config, HAMLConfig) and name != "HAML"
    )


def make(algorithm: str, network: str, seed: int, **game: Any) -> Any:
    register_env("matching_game", lambda config: MatchingGame(**config))
    return (
        getattr(rllib_haml, f"{algorithm}Config")()
        .environment(
            "matching_game", env_config={**game, "memory": network != "mlp"}, disable_env_checking=True
        )
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .training(gamma=0.0, critic_lr=3e-3, train_batch_size_per_learner=512)
        .training(**SETTINGS.get(algorithm, {"lr": 3e-3}))
        .rl_module(model_config={**MODEL, **NETWORKS[network]})
        .debugging(seed=seed)
    )


def run(algorithm: str, network: str, seed: int, steps: int, **game: Any) -> dict[str, Any]:
    """One run: its row of the CSV."""
    start, gap, mean, reached = time.monotonic(), 0.0, 0.0, ""
    algo = make(algorithm, network, seed, **game).build_algo()
    games = [team.env for team in algo.env_runner.env.team._teams]
    taken = 0
    while taken < steps and not reached:
        result = algo.train()
        taken = int(result["env_runners"]["num_env_steps_sampled_lifetime"])
        gap = max(
            gap, *(float(m["behaviour_gap"]) for m in result["learners"].values() if "behaviour_gap" in m)
        )
        mean = float(np.mean([score for game in games for score in game.scores]))
        full = all(len(game.scores) == game.scores.maxlen for game in games)
        if full and mean >= ENOUGH * OPTIMUM:
            reached = taken
    algo.stop()
    row = {"algorithm": algorithm, "network": network, "seed": seed, **game}
    seconds = round(time.monotonic() - start, 1)
    return row | {"reached_at": reached, "score": round(mean, 3), "gap": f"{gap:.1e}", "seconds": seconds}


def todo(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All runs, those of an algorithm's first seed first."""
    wanted = [
        {"algorithm": a, "kind": k, "masked": m, "network": n, "shuffled": args.shuffled, "seed": seed}
        for seed, n, k, m, a in itertools.product(
            args.seeds, args.networks, KINDS, (False, True), args.algorithms
        )
        if not m or options(KINDS[k])
    ]
    done = {key(row) for row in read(args.out)}
    return [row for row in wanted if key(row) not in done]


def key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in FIELDS[:6])


def read(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def summarise(file: Path) -> None:
    """Per algorithm and network: the share of runs that reached the optimum, and the slowest one."""
    rows = read(file)
    print(f"{'algorithm':10} {'network':12} {'reached':>9} {'slowest':>8}   score where not reached")
    for kind in sorted({_kind(row) for row in rows}):
        own = [row for row in rows if _kind(row) == kind]
        steps = [int(r["reached_at"]) for r in own if r["reached_at"]]
        missed = [
            f"{r['kind']}{'+mask' * (r['masked'] == 'True')} {r['score']}" for r in own if not r["reached_at"]
        ]
        share, network = f"{len(steps)}/{len(own)}", kind[1] + "+shuffled" * (kind[2] == "True")
        print(f"{kind[0]:10} {network:12} {share:>9} {max(steps, default=0):>8}   {', '.join(missed)}")


def _kind(row: dict[str, str]) -> tuple[str, str, str]:
    return row["algorithm"], row["network"], row["shuffled"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--algorithms", nargs="+", default=algorithms())
    parser.add_argument("--networks", nargs="+", default=["mlp", "gru"])
    parser.add_argument("--steps", type=int, default=300_000, help="env steps at most")
    parser.add_argument("--shuffled", action="store_true", help="the control that must not learn")
    parser.add_argument("--summary", action="store_true", help="print the table of --out")
    args = parser.parse_args()
    if args.summary:
        return summarise(args.out)
    torch.set_num_threads(1)
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    for settings in todo(args):
        row = run(**settings, steps=args.steps)
        new = not args.out.exists()
        with args.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(*row.values(), flush=True)
    return None


if __name__ == "__main__":
    main()
