"""Sub-environments that fail and are started anew: how often, and what is lost with them."""

from __future__ import annotations

import logging
from collections import Counter

from ray.rllib.env.env_runner import NUM_ENV_STEP_FAILURES_LIFETIME
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_haml.sampling.faults import EnvironmentFault

logger = logging.getLogger("rllib_haml")
NUM_ENV_STEPS_DISCARDED = "num_env_steps_discarded"
NUM_ENV_STEPS_DISCARDED_LIFETIME = "num_env_steps_discarded_lifetime"
FORGIVEN = 3  # failures of one sub-environment while one batch is sampled


class Restarts:
    """Whether a failure is forgiven (`restart_failed_sub_environments`), and the book of them.

    Args:
        allowed: `restart_failed_sub_environments`.
    """

    def __init__(self, allowed: bool):
        self.allowed = allowed
        self._failures: Counter[int | None] = Counter()

    def begin(self, metrics: MetricsLogger) -> None:
        """Starts a batch. Logs zeros, since RLlib reports unlogged counters as NaN."""
        self._failures.clear()
        _log(metrics, failures=0, lost=0)

    def forgive(self, fault: EnvironmentFault, lost: int, metrics: MetricsLogger) -> None:
        """Counts a failure.

        Args:
            fault: What went wrong.
            lost: Joint steps of this batch that are dropped with the sub-environment's episode.
            metrics: Of the env runner.

        Raises:
            EnvironmentFault: `fault`, if that sub-environment has failed too often in this batch.
        """
        self._failures[fault.sub_env] += 1
        if self._failures[fault.sub_env] > FORGIVEN:
            raise fault
        logger.warning(
            "%s. This sub-environment starts anew; %d of its steps are dropped. (Failure %d of %d that are "
            "forgiven in one batch.)",
            fault,
            lost,
            self._failures[fault.sub_env],
            FORGIVEN,
            exc_info=fault.__cause__,
        )
        _log(metrics, failures=1, lost=lost)


def _log(metrics: MetricsLogger, failures: int, lost: int) -> None:
    metrics.log_value(NUM_ENV_STEP_FAILURES_LIFETIME, failures, reduce="lifetime_sum")
    metrics.log_value(NUM_ENV_STEPS_DISCARDED, lost, reduce="sum")
    metrics.log_value(NUM_ENV_STEPS_DISCARDED_LIFETIME, lost, reduce="lifetime_sum")
