"""Ends a run whose updates are skipped again and again because they are not finite."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.rllib.utils.metrics import LEARNER_RESULTS

from rllib_haml.algorithms.every_learner import on_every_learner
from rllib_haml.learners.skipped_updates import NUM_UPDATES_SKIPPED_IN_A_ROW

if TYPE_CHECKING:
    from rllib_haml.algorithms.haml import HAML

logger = logging.getLogger("rllib_haml")
LAST_FINITE = "last_finite_weights"


class NonFiniteUpdates(RuntimeError):
    """A module's updates were not finite so often in a row that training has ended.

    Its weights, and all others', are the last good ones; the message says where they were saved.
    """


class SkipWatch:
    """Looks after each update whether any was skipped.

    Args:
        limit: Skipped updates in a row of one module that end the run.

    Attributes:
        stuck: What is wrong with the modules that reached the limit; empty if none has.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self.stuck = ""

    def look(self, algo: HAML) -> None:
        """Says in the log what was skipped in the update just done."""
        modules = [*algo.config.acting_modules(), *algo.config.critic_specs(algo.config.team, {})]
        skipped = {name: _skipped_in_a_row(algo, name) for name in modules}
        if not any(skipped.values()):
            return
        causes, *_ = on_every_learner(algo, lambda learner: learner.skipped.causes)
        told = []
        for name, cause in causes.items():
            kind = "Policy" if name in algo.config.acting_modules() else "Critic"
            text = f"{kind} {name}, iteration {algo.iteration + 1}: {cause}"
            logger.warning(
                "%s. Its update was not applied (%d in a row, %d end the run).",
                text,
                skipped[name],
                self._limit,
            )
            if skipped[name] >= self._limit:
                told.append(f"{text}; {skipped[name]} updates in a row were not applied")
        self.stuck = ". ".join(told)

    def end(self, algo: HAML) -> Any:
        """Raises what ends the run, once the last good weights are saved.

        Tune has saved them among the run's checkpoints when the last iteration ended; without Tune they are
        saved here, beside the run's logs.

        Raises:
            NonFiniteUpdates: Always.
        """
        storage: Any = algo._storage
        path = storage.checkpoint_fs_path if storage else algo.save_to_path(_beside_logs(algo))
        raise NonFiniteUpdates(
            f"{self.stuck}. The last good weights are in {path}. Lower `lr` or `num_epochs`, or set "
            f"`grad_clip`, and begin with them: `rllib train ... --restore {path}` (in Python "
            f"`algo.restore_from_path(...)`). `max_consecutive_nonfinite_updates` is how many are forgiven, "
            f"here {self._limit}."
        )


def _beside_logs(algo: HAML) -> str:
    return str(Path(str(algo.logdir)) / LAST_FINITE)


def _skipped_in_a_row(algo: HAML, name: str) -> int:
    count = algo.metrics.peek((LEARNER_RESULTS, name, NUM_UPDATES_SKIPPED_IN_A_ROW), default=0)
    # What rests in this phase (LoRASA's backbone) reports nothing, which RLlib's metrics call nan.
    return 0 if math.isnan(count) else int(count)
