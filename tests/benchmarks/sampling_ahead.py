"""The time that sampling ahead saves: env runners at work while the critic is fitted, and not.

    python tests/benchmarks/sampling_ahead.py --out tests/benchmarks/results/sampling_ahead.csv

HAPPO on HalfCheetah 2x3, tuned, with one remote env runner on a CPU of its own. Both ways take turns in one
run, some iterations each; the first of every turn, which still has the other way's beginning, does not count.
Medians of seconds per iteration.
"""

from __future__ import annotations

import argparse
import csv
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import ray
import torch

import rllib_haml
from rllib_haml.config import load_experiments
from rllib_haml.sampling.parallel import BatchSampler

HAPPO = Path(__file__).parents[2] / "tuned_examples" / "happo" / "mamujoco_halfcheetah_2x3.yaml"


class Switchable(BatchSampler):
    """Begins ahead only while `ahead` is set; who asks for a batch gets one all the same."""

    ahead = True

    def begin(self) -> None:
        if self.ahead:
            super().begin()

    def _answers(self) -> list[Any]:
        super().begin()
        return super()._answers()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="of each way")
    parser.add_argument("--iterations", type=int, default=5, help="that count, of each turn")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rllib_haml.register()
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    (experiment,) = load_experiments(HAPPO)
    config: Any = experiment.config.copy(copy_frozen=False)
    algo = config.env_runners(num_env_runners=1).build_algo()
    algo.sampler.__class__ = Switchable
    seconds: dict[str, list[float]] = {"ahead": [], "afterwards": []}
    critic: list[float] = []
    algo.train()
    for _ in range(args.turns):
        for way, values in seconds.items():
            algo.sampler.ahead = way == "ahead"
            algo.train()
            for _ in range(args.iterations):
                start = time.perf_counter()
                result = algo.train()
                values.append(time.perf_counter() - start)
                critic.append(result["timers"]["critic_update_timer"])
    algo.stop()
    medians = {way: statistics.median(values) for way, values in seconds.items()}
    saved = 1 - medians["ahead"] / medians["afterwards"]
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["way", "seconds"])
        writer.writerows((way, f"{value:.4f}") for way, values in seconds.items() for value in values)
    print(f"{medians} s per iteration; saved {saved:.1%}; the critic takes {statistics.median(critic):.3f} s")


if __name__ == "__main__":
    main()
