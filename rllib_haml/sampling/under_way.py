"""How far a batch is while it is sampled, for whoever prints that; told through Ray's key-value store."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ray.experimental import internal_kv

_EVERY_S = 2.0
_TUNES = "working_dirs"  # where Tune has the directories that its trials work in


class UnderWay:
    """Counts the env steps that one env runner has sampled with the present weights, and tells them.

    Args:
        log_dir: Of the algorithm; Tune's name for the trial is its last part. Outside of Tune nobody is told.
        worker_index: Of the env runner.
        batch: Env steps of a train batch, of all env runners together.
    """

    def __init__(self, log_dir: str | None, worker_index: int, batch: int):
        place = Path(log_dir or "")
        # RLlib drops the trial's id on the way to its algorithm.
        self._key = f"{_prefix(place.name)}{worker_index}" if place.parent.name == _TUNES else None
        self._batch = batch
        self._version, self._steps, self._told = -1, 0, 0.0

    def count(self, steps: int, version: int) -> None:
        """Adds steps that were sampled with weights of this `version`; tells it every few seconds."""
        if version != self._version:
            self._version, self._steps = version, 0
        self._steps += steps
        if time.monotonic() - self._told > _EVERY_S:
            self.tell()

    def tell(self) -> None:
        """Says how many there are now."""
        self._told = time.monotonic()
        if self._key is not None and internal_kv._internal_kv_initialized():
            told = json.dumps([self._version, self._steps, self._batch])
            internal_kv._internal_kv_put(self._key, told, overwrite=True)


def steps_under_way(trial: str) -> tuple[int, int] | None:
    """How many env steps a trial (its directory's name) has sampled of its batch, of how many; or None."""
    keys = internal_kv._internal_kv_list(_prefix(trial))
    values = [internal_kv._internal_kv_get(key) for key in keys]
    told = [json.loads(value) for value in values if value is not None]
    newest = [(steps, batch) for version, steps, batch in told if version == max(told)[0]]
    return (sum(steps for steps, _ in newest), newest[0][1]) if newest else None


def forget_steps(trial: str) -> None:
    """Removes what a trial's env runners have told."""
    internal_kv._internal_kv_del(_prefix(trial), del_by_prefix=True)


def _prefix(trial: str) -> str:
    return f"rllib_haml/under_way/{trial}/"
