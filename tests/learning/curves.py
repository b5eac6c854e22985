"""Trains one experiment file with several seeds and writes the learning curves as CSV.

    python tests/learning/curves.py tuned_examples/happo/mamujoco_halfcheetah_2x3.yaml \
        --agents 2 --seeds 1 2 3 4 5 --out tests/learning/results/halfcheetah_2x3_local.csv

Each row holds the mean team return of the episodes among the last `--window` that had ended by then. Rows are
appended, so that several processes may share a file.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import ray
import torch

import rllib_haml
from rllib_haml.config import load_experiments
from rllib_haml.config.document import read_text
from rllib_haml.haml import Player
from rllib_haml.learners.advantages import TeamAdvantage
from rllib_haml.learners.on_policy import OnPolicyTeamLearner


@dataclass(frozen=True)
class Shuffled(TeamAdvantage):
    """Every joint step gets the advantage of another one."""

    def __call__(self, log_factor: torch.Tensor) -> torch.Tensor:
        advantage = super().__call__(log_factor)
        return advantage[torch.randperm(len(advantage))]


class ShuffledAdvantages(OnPolicyTeamLearner):
    """Control: nothing can be learnt from it."""

    def _sweep(self, players: dict[str, Player], advantage: TeamAdvantage) -> dict[str, torch.Tensor]:
        parts = {f.name: getattr(advantage, f.name) for f in fields(advantage)}
        return super()._sweep(players, Shuffled(**parts))


def train(file: Path, seed: int, point: dict[str, str], args: argparse.Namespace) -> None:
    """`point` of the grid: config key -> YAML."""
    (experiment,) = load_experiments(file)
    config: Any = experiment.config.copy(copy_frozen=False)
    config.debugging(seed=seed).reporting(metrics_num_episodes_for_smoothing=args.window)
    config.update_from_dict({key: read_text(value, key).data for key, value in [*args.set, *point.items()]})
    if args.shuffle_advantages:
        config.training(learner_class=ShuffledAdvantages)
    algo = config.build_algo()
    agents = algo.config.team.agents
    assert len(agents) == args.agents, f"{len(agents)} agents, not {args.agents}: {agents}"
    name = experiment.name + ("-shuffled" if args.shuffle_advantages else "")
    name = " ".join([name, *(f"{key}={value}" for key, value in point.items())])
    goal = args.steps or experiment.stop["num_env_steps_sampled_lifetime"]
    start, steps, reported = time.monotonic(), 0, 0
    while steps < goal:
        result = algo.train()["env_runners"]
        steps = int(result["num_env_steps_sampled_lifetime"])
        if steps - reported >= args.every:
            reported = steps
            row = [name, seed, steps, round(float(result["team_return_mean"]), 2)]
            with args.out.open("a", newline="") as file_:
                csv.writer(file_).writerow(row)
            left = (time.monotonic() - start) / steps * (goal - steps)
            print(*row, f"{left / 60:.0f} min left", flush=True)
    algo.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--agents", type=int, required=True, help="the run fails if the team is another")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="env steps, if not the file's `stop`")
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("KEY", "YAML"), help="a config key"
    )
    parser.add_argument(
        "--grid",
        nargs="+",
        action="append",
        default=[],
        metavar=("KEY", "YAML"),
        help="a config key and values to try;\nrows are named by the combination",
    )
    parser.add_argument("--every", type=int, default=20_000, help="env steps between rows")
    parser.add_argument("--window", type=int, default=20, help="episodes that a row averages")
    parser.add_argument("--shuffle-advantages", action="store_true", help="the control that must not learn")
    args = parser.parse_args()
    if not args.out.exists():
        args.out.write_text("experiment,seed,env_steps,return\n")
    torch.set_num_threads(1)
    rllib_haml.register()
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    keys = [key for key, *_ in args.grid]
    for values in itertools.product(*(values for _, *values in args.grid)):
        for seed in args.seeds:
            train(args.file, seed, dict(zip(keys, values, strict=True)), args)


if __name__ == "__main__":
    main()
