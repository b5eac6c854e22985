"""A line every half minute about an iteration that has not ended: how much of its batch is sampled."""

from __future__ import annotations

import time
from typing import Any

import click
from ray.tune import Callback
from ray.tune.experiment import Trial

from rllib_haml.cli.first_iteration import duration
from rllib_haml.cli.progress import label
from rllib_haml.sampling.under_way import forget_steps, steps_under_way

LINE_EVERY_S = 30.0


class LongIterations(Callback):
    """Prints what trials are at, between their progress lines."""

    def __init__(self, name: str, num_trials: int) -> None:
        self._name, self._several = name, num_trials > 1
        self._began: dict[str, float] = {}
        self._told: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Counts from here."""
        self._begin(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Counts from here."""
        self._begin(trial)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Prints lines that are due; Tune calls this many times a second."""
        now = time.monotonic()
        for trial in trials:
            told = self._told.get(trial.trial_id, now)
            if trial.status == Trial.RUNNING and now - told >= LINE_EVERY_S:
                self._told[trial.trial_id] = now
                line = within_iteration(trial, now - self._began[trial.trial_id])
                click.echo(f"{label(self._name, trial, self._several)}  {line}")

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Leaves nothing behind in Ray."""
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Leaves nothing behind in Ray."""
        self._end(trial)

    def _begin(self, trial: Trial) -> None:
        self._began[trial.trial_id] = self._told[trial.trial_id] = time.monotonic()

    def _end(self, trial: Trial) -> None:
        self._told.pop(trial.trial_id, None)
        forget_steps(_name(trial))


def within_iteration(trial: Trial, seconds: float) -> str:
    """The line about a trial whose iteration has lasted for `seconds`."""
    which = f"iteration {(trial.last_result or {}).get('training_iteration', 0) + 1}, {duration(seconds)}:"
    told = steps_under_way(_name(trial))
    if told is None:
        return f"{which} no step is told yet (RLlib's own env runners never tell)"
    steps, batch = told
    of = f"{which} {min(steps, batch):,} / {batch:,} steps of its batch sampled"
    if steps >= batch:
        return f"{of}, then comes its update"
    left = f", about {duration(seconds * (batch - steps) / steps)} left" if steps else ""
    return f"{of}  {steps / seconds:,.1f} steps/s{left}"


def _name(trial: Trial) -> str:
    assert trial.storage is not None
    return str(trial.storage.trial_dir_name)
