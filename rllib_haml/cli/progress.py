"""One line per iteration and trial: how far, how good, how fast, how long still."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from ray._private.dict import flatten_dict
from ray.tune import Callback
from ray.tune.experiment import Trial

from rllib_haml.cli.report import cause

STEPS = "num_env_steps_sampled_lifetime"

# Stop criteria that grow steadily, so that what is left can be told: metric -> its unit.
_TARGETS = {
    STEPS: "steps",
    f"env_runners/{STEPS}": "steps",
    "training_iteration": "iterations",
    "time_total_s": "s",
}


@dataclass
class _Start:
    """Where a trial stood when this process first heard of it."""

    when: float
    done: float


class ProgressLines(Callback):
    """Prints the progress of every trial of one experiment."""

    def __init__(self, name: str, num_trials: int) -> None:
        self._name = name
        self._several = num_trials > 1
        self._starts: dict[str, _Start] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Says which point of the search a trial is."""
        if self._several and trial.trial_id not in self._starts:
            point = ", ".join(f"{key}={value}" for key, value in trial.evaluated_params.items())
            click.echo(f"{self._label(trial)}  {point}")
        self._starts.setdefault(trial.trial_id, _Start(time.time(), 0.0))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Prints the line of one iteration."""
        flat = flatten_dict(result)
        if flat.get("iterations_since_restore") == 1:
            # Steps before a restore cost this process no time.
            self._starts[trial.trial_id] = _start_of(flat, trial.stopping_criterion)
        start = self._starts[trial.trial_id]
        click.echo(f"{self._label(trial)}  {progress_line(flat, trial.stopping_criterion, start)}")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Says why a trial failed that `max_failures` lets start again."""
        click.echo(f"{self._label(trial)}: {restart_line(trial)}", err=True)

    def _label(self, trial: Trial) -> str:
        return label(self._name, trial, self._several)


def label(name: str, trial: Trial, several: bool) -> str:
    """What a trial's lines begin with: the experiment's name, and which of `several` trials it is."""
    return f"{name}#{trial.trial_id.rpartition('_')[2]}" if several else name


def progress_line(flat: Mapping[str, Any], stop: Mapping[str, float], start: _Start) -> str:
    """The line for one flattened result, without the trial's name."""
    metric, unit = target_of(stop)
    done = flat.get(metric, 0)
    parts = [f"{done:,.0f} {unit}"]
    if metric in stop:
        asked = stop[metric]
        parts = [f"{done:,.0f} / {asked:,.0f} {unit}", f"{min(1.0, done / (asked or 1)):6.1%}"]
    if unit != "steps":
        parts.append(f"{flat.get(STEPS, 0):,.0f} steps")
    parts.append(f"team return {team_return(flat)}")
    parts += [f"{name} {value:.2f}" for name, value in _outcomes(flat).items()]
    parts.append(f"{_steps_per_second(flat):,.0f} steps/s")
    if metric in stop:
        parts.append(f"{_time_left(done, stop[metric], start)} left")
    return "  ".join(parts)


def restart_line(trial: Trial) -> str:
    """Which failure of how many a trial has survived, from where it goes on, and what it died of."""
    allowed = f" of {trial.max_failures}" if trial.max_failures >= 0 else ""
    place = "its last checkpoint" if trial.has_checkpoint() else "its beginning"
    text = Path(trial.error_file).read_text() if trial.error_file else ""
    # Tune adds every failure's trace to one file, each below a heading.
    last = text.rpartition("Failure # ")[2].partition("\n")[2]
    return f"failure {trial.num_failures}{allowed}, goes on from {place}: {cause(last)}"


def target_of(stop: Mapping[str, float]) -> tuple[str, str]:
    """The stop criterion by which progress is measured, and its unit."""
    return next(((m, unit) for m, unit in _TARGETS.items() if m in stop), (STEPS, "steps"))


def team_return(flat: Mapping[str, Any]) -> str:
    """The team's mean return; RLlib's algorithms report the sum over agents."""
    for metric in ("env_runners/team_return_mean", "env_runners/episode_return_mean"):
        if flat.get(metric) is not None:
            return f"{flat[metric]:,.2f}"
    return "- (no episode ended yet)"


def _outcomes(flat: Mapping[str, Any]) -> dict[str, float]:
    """What the environment tells beside the return, for example the share of battles won."""
    prefix = "env_runners/outcome_mean/"
    return {name.removeprefix(prefix): value for name, value in flat.items() if name.startswith(prefix)}


def _start_of(flat: Mapping[str, Any], stop: Mapping[str, float]) -> _Start:
    metric, unit = target_of(stop)
    this_iteration = {
        "steps": flat.get("env_runners/num_env_steps_sampled", 0),
        "iterations": 1,
        "s": flat.get("time_this_iter_s", 0),
    }[unit]
    when = time.time() - flat.get("time_this_iter_s", 0.0)
    return _Start(when, flat.get(metric, 0) - this_iteration)


def _steps_per_second(flat: Mapping[str, Any]) -> float:
    seconds = flat.get("time_this_iter_s", 0)
    return flat.get("env_runners/num_env_steps_sampled", 0) / seconds if seconds else 0.0


def _time_left(done: float, asked: float, start: _Start) -> str:
    progress = done - start.done
    if progress <= 0:
        return "?"
    seconds = int(max(0, asked - done) * (time.time() - start.when) / progress)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds % 60:02}s"
