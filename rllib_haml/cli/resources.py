"""Whether a cluster can hold a trial, and a line now and then while one waits for it."""

from __future__ import annotations

import time
from typing import Any

import click
import ray
from ray.tune import Callback, PlacementGroupFactory
from ray.tune.experiment import Trial

from rllib_haml.algorithms.placement import alive_nodes, shortage, total
from rllib_haml.config.experiment import Experiment

_LINE_EVERY_S = 30.0


def trial_shortage(experiment: Experiment) -> str | None:
    """What one trial of `experiment` asks of the running Ray beyond what there is, else None."""
    request = experiment.algorithm_class.default_resource_request(experiment.config.to_dict())
    assert isinstance(request, PlacementGroupFactory)
    return shortage(request.bundles, alive_nodes(), "a trial")


class WaitingLines(Callback):
    """Says what is missing as long as no trial of an experiment can start."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next_line = 0.0

    def setup(self, *args: Any, **info: Any) -> None:
        """Counts from the start of this process's run, also of a resumed one."""
        self._next_line = time.monotonic() + _LINE_EVERY_S

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Prints a line if nothing has run since the last one; Tune calls this many times a second."""
        now = time.monotonic()
        waiting = [trial for trial in trials if trial.status == Trial.PENDING]
        if not waiting or any(trial.status == Trial.RUNNING for trial in trials):
            self._next_line = now + _LINE_EVERY_S
        elif now > self._next_line:
            self._next_line = now + _LINE_EVERY_S
            click.echo(f"{self._name}: waiting: {_why(waiting[0])}", err=True)


def _why(trial: Trial) -> str:
    assert isinstance(trial.placement_group_factory, PlacementGroupFactory)
    bundles = trial.placement_group_factory.bundles
    missing = shortage(bundles, alive_nodes(), "a trial")
    if missing:
        return missing
    free = ray.available_resources()
    needs = total(bundles)
    asked = [f"{amount:g} {name} ({free.get(name, 0):g} free)" for name, amount in needs.items()]
    if all(free.get(name, 0) >= amount for name, amount in needs.items()):
        why = "All of it is free: actors are starting."
    else:
        # Ray counts as in use what a trial holds for actors that are not ready yet.
        why = "The rest is in use: by others, or by this trial's own actors, which are starting."
    return f"a trial asks for {', '.join(asked)}. {why}"
