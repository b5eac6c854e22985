"""A checkpoint every ten minutes, however many iterations that are."""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.result import SHOULD_CHECKPOINT

EVERY_S = 600.0


class TimedCheckpoints(Callback):
    """Asks for a checkpoint of each trial whose last one, or whose start, was ten minutes ago.

    It is made at the end of an iteration: of every one where iterations last longer.
    """

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Counts from here, also where a trial starts again from its last checkpoint."""
        self._since[trial.trial_id] = time.monotonic()

    def on_trial_save(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Counts from here, whoever asked for the checkpoint."""
        self._since[trial.trial_id] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Asks by a key of the result, as Tune has it."""
        if time.monotonic() - self._since[trial.trial_id] >= EVERY_S:
            result[SHOULD_CHECKPOINT] = True
