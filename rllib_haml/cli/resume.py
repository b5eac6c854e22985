"""What Tune left behind of an earlier run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pyarrow import fs
from ray.tune import Tuner
from ray.tune.trainable.metadata import _TrainingRunMetadata

from rllib_haml.checkpoints.intact import last_intact
from rllib_haml.cli.storage import is_uri, within
from rllib_haml.config.errors import ConfigError, Problem

_ENDED = "TERMINATED"


@dataclass(frozen=True)
class EarlierRun:
    """What was noted of a run.

    Attributes:
        statuses: Of every trial that was begun.
        origins: Of every trial that has not ended, the checkpoint that it would go on from; None if it
            would begin again.
    """

    statuses: tuple[str, ...]
    origins: tuple[str | None, ...] = ()

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on from."""
        return bool(self.statuses)

    def has_ended(self, num_trials: int) -> bool:
        """Whether all of `num_trials` trials have ended well."""
        return len(self.statuses) >= num_trials and all(status == _ENDED for status in self.statuses)

    def way_on(self) -> str:
        """What resuming does with the trials that have not ended; the rest of a sentence."""
        made = [origin for origin in self.origins if origin]
        if not self.origins:
            return "begins the trials that are left"
        if not made:
            return "begins again: no checkpoint was made yet"
        if len(self.origins) == 1:
            return f"continues from {made[0]}"
        rest = "; the others begin again, they have none yet" if len(made) < len(self.origins) else ""
        return f"continues {len(made)} of {len(self.origins)} trials from their last checkpoints{rest}"


NEVER_BEGUN = EarlierRun(())


def earlier_run(path: str) -> EarlierRun:
    """What is noted of an experiment in its directory, or below its URI.

    Raises:
        ConfigError: Tune's note cannot be read; it names the last intact checkpoint.
    """
    if not Tuner.can_restore(path):
        return NEVER_BEGUN
    filesystem, place = fs.FileSystem.from_uri(path)
    files = filesystem.get_file_info(fs.FileSelector(place))
    notes = sorted(file.path for file in files if file.base_name.startswith("experiment_state-"))
    if not notes:
        return NEVER_BEGUN
    with filesystem.open_input_stream(notes[-1]) as stream:
        text = stream.read()
    try:
        # Each trial's data: its state, and what was measured while it ran.
        trials = [(json.loads(state), measured) for state, measured in json.loads(text)["trial_data"]]
        statuses = tuple(state["status"] for state, _ in trials)
    except (ValueError, KeyError, TypeError) as error:
        raise _torn(path, notes[-1], error) from error
    left = [trial for trial in trials if trial[0]["status"] != _ENDED]
    return EarlierRun(statuses, tuple(_origin(path, *trial) for trial in left))


def _origin(path: str, state: dict[str, Any], measured: str) -> str | None:
    """The checkpoint that Tune would restore a trial from."""
    manager = _TrainingRunMetadata.from_json_state(measured).checkpoint_manager
    latest = manager and manager.latest_checkpoint_result
    if latest and latest.checkpoint:
        return within(path, latest.checkpoint.path)
    return state.get("restore_path")


def _torn(path: str, note: str, error: Exception) -> ConfigError:
    filesystem, place = fs.FileSystem.from_uri(path)
    way_out = "without --resume"
    if intact := last_intact(place, filesystem):
        # Inside a file system, paths have lost the URI's scheme.
        intact = path + intact.removeprefix(place)
        copied = f"copy {intact} to a directory; --restore DIRECTORY"
        way_out = f"{copied if is_uri(path) else f'--restore {intact}'}, {way_out}"
    text = (
        f"{path}{note.removeprefix(place)} cannot be read ({error}): Tune's note of the run was not written "
        f"to its end. Start again: {way_out}."
    )
    return ConfigError([Problem("--resume", "", text)])
