"""What the update's diagnostics cost, as a share of a whole training iteration.

    python tests/benchmarks/diagnostics.py

HAPPO on HalfCheetah 2x3 and 6x1, tuned: CPU time of the figures that an operator reads, over that of
the iterations they were taken in. One process, one torch thread.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from pathlib import Path
from typing import Any

import ray
import torch

import rllib_haml
from rllib_haml.config import load_experiments
from rllib_haml.learners.on_policy import OnPolicyTeamLearner

FILE = Path(__file__).parents[2] / "tuned_examples" / "happo" / "mamujoco_halfcheetah_2x3.yaml"


class Timed(OnPolicyTeamLearner):
    """Keeps the CPU seconds that reporting a sweep took."""

    seconds = 0.0

    def _report_sweep(self, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return super()._report_sweep(*args, **kwargs)
        finally:
            Timed.seconds += time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--iterations", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rllib_haml.register()
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    (experiment,) = load_experiments(FILE)
    for conf in ("2x3", "6x1"):
        config: Any = experiment.config.copy(copy_frozen=False)
        config.environment(env_config={"agent_conf": conf}).training(learner_class=Timed)
        algo = config.build_algo()
        algo.train()
        shares = []
        for _ in range(args.iterations):
            Timed.seconds, start = 0.0, time.process_time()
            algo.train()
            shares.append(Timed.seconds / (time.process_time() - start))
        algo.stop()
        median, low, high = (100 * f(shares) for f in (statistics.median, min, max))
        print(f"{conf}  {median:.2f} % of an iteration ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
