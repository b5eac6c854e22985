"""What a run keeps of every iteration's results, in few bytes: result.json, progress.csv, TensorBoard."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray.air._internal.json import SafeFallbackEncoder
from ray.air.constants import EXPR_PROGRESS_FILE, TRAINING_ITERATION
from ray.rllib.utils.metrics import LEARNER_RESULTS
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback
from ray.tune.result import TIMESTEPS_TOTAL
from ray.tune.utils import flatten_dict

# What stands elsewhere (params.json, Tune's note of the run), never changes, follows from other numbers, or
# times RLlib's insides.
_LEFT_OUT = re.compile(
    r"config|pid|hostname|node_ip|date|weights_seq_no|num_(non_)?trainable_parameters|.*_throughput|connectors"
    r"|.*_connector|connector_pipeline_timer|learner_connector_sum_episodes_length_(in|out)|agent_steps"
    r"|num_(agent|module)_steps_\w+|module_episode_returns_mean|module_train_batch_size_mean|env_runner_group"
    r"|num_training_step_calls_per_iteration|time_between_sampling|sample|num_env_steps_discarded\w*"
)
_CURVES = re.compile(
    r"(evaluation/)?env_runners/((team_return|episode_return|episode_len)_mean|outcome_mean/.+)"
    rf"|num_env_steps_sampled_lifetime|{TRAINING_ITERATION}|{TIMESTEPS_TOTAL}"
)
# Bytes an iteration, beside what every iteration has; and what TensorBoard takes for one number.
_LEARNERS_IN_LINES, _REST_IN_CURVES, _ONE_IN_CURVES = 1800, 1000, 90
_DIGITS = 6


def result_files(given: Sequence[Callback]) -> list[Callback]:
    """The loggers of a run, instead of Tune's; none of a kind that is `given`."""
    if os.environ.get("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS") == "1":
        return []
    kinds = {JsonLoggerCallback: Lines, CSVLoggerCallback: Table, TBXLoggerCallback: Curves}
    return [own() for tunes, own in kinds.items() if not any(isinstance(one, tunes) for one in given)]


def recorded(result: Mapping[str, Any]) -> dict[str, Any]:
    """What of a result is kept."""
    kept = {key: _short(value) for key, value in result.items() if not _LEFT_OUT.fullmatch(str(key))}
    return {key: value for key, value in kept.items() if value != {}}


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return recorded(value)
    if isinstance(value, float | np.floating) and not float(value).is_integer():
        return float(f"{value:.{_DIGITS}g}")
    return value


def _is_due(result: Mapping[str, Any], size: float, per_iteration: float) -> bool:
    """Whether something of so many bytes is written in this iteration: as often as leaves so many in each."""
    return (result[TRAINING_ITERATION] - 1) % max(1, math.ceil(size / per_iteration)) == 0


class Lines(JsonLoggerCallback):
    """result.json: a line per iteration; of large teams, the learners' part of it every so often.

    The config stands in params.json.
    """

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        if trial not in self._trial_files:
            self.log_trial_start(trial)
        kept = recorded(result)
        learners = {LEARNER_RESULTS: kept.pop(LEARNER_RESULTS, {})}
        if _is_due(result, len(_dumps(learners)), _LEARNERS_IN_LINES):
            kept |= learners
        self._trial_files[trial].write(_dumps(kept) + "\n")
        self._trial_files[trial].flush()


def _dumps(value: Any) -> str:
    return json.dumps(value, cls=SafeFallbackEncoder, separators=(",", ":"))


class Table(CSVLoggerCallback):
    """progress.csv: a row per iteration, with all of it, also what the first ones did not have."""

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        if trial not in self._trial_files:
            self._setup_trial(trial)
        row = flatten_dict(recorded(result))
        writer = self._trial_csv[trial]
        if writer is None or not row.keys() <= set(writer.fieldnames):
            writer = self._widened(trial, list(row))
        writer.writerow(row)
        self._trial_files[trial].flush()

    def _widened(self, trial: Trial, columns: list[str]) -> csv.DictWriter[str]:
        """The table written anew with more columns, and open at its end."""
        self._trial_files[trial].close()
        path = Path(str(trial.local_path), EXPR_PROGRESS_FILE)
        aside = path.with_suffix(".writing")
        with path.open(newline="") as before, aside.open("w", newline="") as after:
            rows = csv.DictReader(before)
            wider = list(dict.fromkeys([*(rows.fieldnames or ()), *columns]))
            writer = csv.DictWriter(after, wider)
            writer.writeheader()
            writer.writerows(rows)
        aside.replace(path)
        self._trial_files[trial] = path.open("a", newline="")
        self._trial_csv[trial] = csv.DictWriter(self._trial_files[trial], wider)
        return self._trial_csv[trial]


class Curves(TBXLoggerCallback):
    """TensorBoard: returns and outcomes of every iteration; the rest every so often, and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._not_shown: dict[Trial, dict[str, Any]] = {}

    def log_trial_result(self, iteration: int, trial: Trial, result: dict[str, Any]) -> None:
        shown = flatten_dict(recorded(result))
        self._not_shown[trial] = {}
        if not _is_due(result, len(shown) * _ONE_IN_CURVES, _REST_IN_CURVES):
            self._not_shown[trial] = shown
            shown = {key: value for key, value in shown.items() if _CURVES.fullmatch(key)}
        super().log_trial_result(iteration, trial, shown)

    def log_trial_end(self, trial: Trial, failed: bool = False) -> None:
        if last := self._not_shown.pop(trial, {}):
            super().log_trial_result(0, trial, last)
        super().log_trial_end(trial, failed)
