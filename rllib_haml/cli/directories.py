"""Where runs of one command lie: `team`, and beside it `team_2`, `team_3` of the same command again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pyarrow import fs

from rllib_haml.cli.note import Note, read_note
from rllib_haml.cli.resume import EarlierRun, earlier_run
from rllib_haml.config.errors import ConfigError, Problem


@dataclass(frozen=True)
class Run:
    """One experiment of one run.

    Attributes:
        directory: Its name under the storage path.
        note: What it began with; None of a run that has not begun, or of an earlier release's.
        before: What Tune noted of it.
    """

    directory: str
    note: Note | None
    before: EarlierRun

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do."""
        return self.before.has_ended(self.note.num_trials if self.note else 1)


def directory(name: str, number: int) -> str:
    """That of a command's run of this number, counted from 1."""
    return name if number == 1 else f"{name}_{number}"


def next_number(storages: Mapping[str, str]) -> int:
    """The number of a new run: 1, or one that no experiment has yet.

    Args:
        storages: Experiment -> the directory, or the URI, in which its directory lies.

    Raises:
        ConfigError: A storage cannot be read.
    """
    numbers = {
        number for name, storage in storages.items() for number in _numbers(storage, name) if number > 1
    }
    if not numbers and not any(_holds_trials(f"{storage}/{name}") for name, storage in storages.items()):
        return 1
    number = max({1, *numbers}) + 1
    while any(_is_taken(storage, directory(name, number), storages) for name, storage in storages.items()):
        number += 1
    return number


def _is_taken(storage: str, name: str, storages: Mapping[str, str]) -> bool:
    return name in storages or bool(_entries(f"{storage}/{name}"))


def last_runs(storages: Mapping[str, str], unfinished: bool) -> dict[str, Run]:
    """Each experiment's part of a command's last run; without trials where it did not come that far.

    Args:
        storages: As in `next_number`.
        unfinished: Rather the last run that has not ended, if there is one.

    Raises:
        ConfigError: A storage, or what stands in it of a run, cannot be read.
    """
    numbers = {number for name, storage in storages.items() for number in _numbers(storage, name)}
    newest = sorted(numbers or {1}, reverse=True)
    for number in newest if unfinished else ():
        runs = _runs(storages, number)
        if any(run.before.begun for run in runs.values()) and not all(run.ended for run in runs.values()):
            return runs
    return _runs(storages, newest[0])


def _runs(storages: Mapping[str, str], number: int) -> dict[str, Run]:
    found = {}
    for name, storage in storages.items():
        path = f"{storage}/{directory(name, number)}"
        found[name] = Run(directory(name, number), read_note(path), earlier_run(path))
    return found


def _numbers(storage: str, name: str) -> list[int]:
    """The runs of an experiment. Another's directory may be called `name_2`: a note tells."""
    parent, _, leaf = f"{storage}/{name}".rpartition("/")
    numbered = re.compile(rf"{re.escape(leaf)}_(\d+)")
    entries = _entries(parent)
    found = [1] if leaf in entries else []
    for match in filter(None, map(numbered.fullmatch, entries)):
        note = read_note(f"{parent}/{match[0]}")
        if note and note.experiment == name:
            found.append(int(match[1]))
    return found


def _holds_trials(path: str) -> bool:
    return any(kind is fs.FileType.Directory for kind in _entries(path).values())


def _entries(path: str) -> dict[str, fs.FileType]:
    try:
        filesystem, place = fs.FileSystem.from_uri(path)
        files = filesystem.get_file_info(fs.FileSelector(place, allow_not_found=True))
    # pyarrow's error for a scheme that it does not know is a ValueError.
    except (OSError, ValueError) as error:
        raise ConfigError([Problem("--storage-path", "", f"{path} cannot be read: {error}.")]) from error
    return {file.base_name: file.type for file in files}
