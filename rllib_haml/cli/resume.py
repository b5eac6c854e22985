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
    states = sorted(Path(path).glob("experiment_state-*.json"))
    if not states:
        return False
    trials = json.loads(states[-1].read_text())["trial_data"]
    # Each trial's data: its state, and what was measured while it ran.
    statuses = [json.loads(state)["status"] for state, _ in trials]
    return len(statuses) < num_trials or any(status != "TERMINATED" for status in statuses)
