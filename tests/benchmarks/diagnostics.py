"""What the update's diagnostics cost, as a share of a whole training iteration.

    python tests/benchmarks/diagnostics.py

HAPPO on HalfCheetah 2x3 and 6x1, tuned: CPU time of the figures that an operator reads, over that of
the iterations they were taken in; and of those about LoRASA's adapters. One process, one torch thread.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch

import rllib_haml
from rllib_haml.config import load_experiments
from rllib_haml.learners.lorasa import LoRASALearner
from rllib_haml.learners.on_policy import OnPolicyTeamLearner

EXAMPLES = Path(__file__).parents[2] / "tuned_examples"
HAPPO, LORASA = (EXAMPLES / run / "mamujoco_halfcheetah_2x3.yaml" for run in ("happo", "lorasa"))


class Seconds:
    """CPU seconds that reporting took."""

    spent = 0.0

    @classmethod
    def of(cls, report: Callable[..., Any], *args: Any) -> Any:
        start = time.process_time()
        try:
            return report(*args)
        finally:
            cls.spent += time.process_time() - start


class TimedSweep(OnPolicyTeamLearner):
    def _report_sweep(self, result: Any, players: Any, advantage: Any) -> Any:
        return Seconds.of(super()._report_sweep, result, players, advantage)


class TimedAudit(LoRASALearner):
    def _log_audit(self, advantage: Any) -> None:
        Seconds.of(super()._log_audit, advantage)


CASES: list[tuple[Path, str, dict[str, Any]]] = [
    (HAPPO, "2x3", {"learner_class": TimedSweep}),
    (HAPPO, "6x1", {"learner_class": TimedSweep}),
    (LORASA, "2x3", {"learner_class": TimedAudit, "adapters_from": 0}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--iterations", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rllib_haml.register()
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    for file, conf, training in CASES:
        (experiment,) = load_experiments(file)
        config: Any = experiment.config.copy(copy_frozen=False)
        config.environment(env_config={"agent_conf": conf}).training(**training)
        algo = config.build_algo()
        algo.train()
        shares = []
        for _ in range(args.iterations):
            Seconds.spent, start = 0.0, time.process_time()
            algo.train()
            shares.append(Seconds.spent / (time.process_time() - start))
        algo.stop()
        median, low, high = (100 * f(shares) for f in (statistics.median, min, max))
        print(f"{file.parent.name} {conf}  {median:.2f} % of an iteration ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
