"""What Tune left behind of an earlier run."""

from __future__ import annotations

import json
from pathlib import Path

from ray.tune import Tuner


def can_resume(path: str, num_trials: int) -> bool:
    """Whether `path` holds an experiment of which not all `num_trials` trials have ended well."""
    if not Tuner.can_restore(path):
        return False
    if "://" in path:
        # Remote storage: Tune itself finds out what is left to do.
        return True
    statuses = _statuses(path)
    return bool(statuses) and not _all_ended(statuses, num_trials)


def has_ended(path: str, num_trials: int) -> bool:
    """Whether `path` holds an experiment of which all `num_trials` trials have ended well."""
    return Tuner.can_restore(path) and "://" not in path and _all_ended(_statuses(path), num_trials)


def _all_ended(statuses: list[str], num_trials: int) -> bool:
    return len(statuses) >= num_trials and all(status == "TERMINATED" for status in statuses)


def _statuses(path: str) -> list[str]:
    """The status of every trial that was begun."""
    states = sorted(Path(path).glob("experiment_state-*.json"))
    if not states:
        return []
    trials = json.loads(states[-1].read_text())["trial_data"]
    # Each trial's data: its state, and what was measured while it ran.
    return [json.loads(state)["status"] for state, _ in trials]
