"""The policies that a checkpoint holds, without the algorithm around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem

from rllib_haml.checkpoints.read import CLASS_FILE, CheckpointError, verify
from rllib_haml.modules.team import TeamModule

# Where they lie in the directory of a checkpoint.
MODULES = Path("learner_group", "learner", "rl_module")


def modules_of(checkpoint: Path | str) -> dict[str, Any]:
    """The modules of a checkpoint of this package by name, adapters bound to their backbone.

    None of its files is read before all are known to be as they were written.

    Args:
        checkpoint: Its directory, on this machine.

    Raises:
        CheckpointError: There is none, it is damaged, or it is not this package's.
    """
    place = Path(checkpoint).expanduser().absolute()
    try:
        verify(place.as_posix(), LocalFileSystem())
    except FileNotFoundError as error:
        raise CheckpointError(str(error)) from error
    if not (place / MODULES / CLASS_FILE).is_file():
        raise CheckpointError(f"{place} holds no policies: expected {MODULES / CLASS_FILE} in it.")
    team: Any = TeamModule.from_checkpoint(str((place / MODULES).resolve()))
    return {name: module.unwrapped() for name, module in sorted(team.items())}
