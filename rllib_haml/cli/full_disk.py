"""What is said where a run's storage took no more: a full disk, a share that went away."""

from __future__ import annotations

import pickle
import shutil

from pyarrow import fs

from rllib_haml.checkpoints.intact import last_intact
from rllib_haml.cli.resume import earlier_run
from rllib_haml.config.errors import ConfigError

# What Tune writes last are the errors of trials; it reads them back, and then they are cut off or empty.
UNWRITTEN = (OSError, EOFError, pickle.UnpicklingError)
# These are OSErrors, and Ray's.
NOT_OF_STORAGE = (ConnectionError, TimeoutError)

_NONE = "There is no intact checkpoint"


def unwritten(path: str, error: Exception) -> str:
    """What could not be written, what is intact, and what to type.

    Args:
        path: The experiment's directory, or its URI.
        error: One of UNWRITTEN.
    """
    filesystem, place = fs.FileSystem.from_uri(path)
    reason = f" ({error})" if isinstance(error, OSError) else ""
    intact = last_intact(place, filesystem)
    kept = f"The last intact checkpoint is {path}{intact.removeprefix(place)}" if intact else _NONE
    return (
        f"{path} could not be written to its end{reason}: is the disk full{_free(place, filesystem)}? "
        f"{kept}. Make room{_way_on(path)}"
    )


def _free(place: str, filesystem: fs.FileSystem) -> str:
    if not isinstance(filesystem, fs.LocalFileSystem):
        return ""
    return f" ({shutil.disk_usage(place).free / 1e6:,.1f} MB are free)"


def _way_on(path: str) -> str:
    try:
        run = earlier_run(path)
    except ConfigError as error:
        return ". " + " ".join(problem.text for problem in error.problems)
    if not run.begun:
        return "; the same command begins again."
    return f"; the same command with --resume {run.way_on()}."
