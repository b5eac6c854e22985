"""What Tune left behind of an earlier run."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pyarrow import fs
from ray.tune import Tuner

from rllib_haml.checkpoints.read import last_intact
from rllib_haml.config.errors import ConfigError, Problem


@dataclass(frozen=True)
class EarlierRun:
    """The status of every trial that was begun."""

    statuses: tuple[str, ...]

    @property
    def begun(self) -> bool:
        """Whether there is anything to go on from."""
        return bool(self.statuses)

    def has_ended(self, num_trials: int) -> bool:
        """Whether all of `num_trials` trials have ended well."""
        return len(self.statuses) >= num_trials and all(status == "TERMINATED" for status in self.statuses)


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
        return EarlierRun(tuple(json.loads(state)["status"] for state, _ in json.loads(text)["trial_data"]))
    except (ValueError, KeyError, TypeError) as error:
        intact = last_intact(place, filesystem)
        way_out = f"--restore {intact}, without --resume" if intact else "without --resume"
        text = f"{notes[-1]} cannot be read ({error}): Tune's note of the run was not written to its end."
        raise ConfigError([Problem("--resume", "", f"{text} Start again: {way_out}.")]) from error
