"""What a run began with, noted in its directory, for the commands that resume it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pyarrow import fs

from rllib_haml.config.document import KeyPath
from rllib_haml.config.errors import ConfigError, Problem

NOTE = "rllib_train.json"

# Results may have been moved since.
_PLACES = ("storage_path", "local_dir")


@dataclass(frozen=True)
class Note:
    """What a run began with.

    Attributes:
        experiment: Its name; the directory may bear another.
        flags: What the command line said of it, as `TrainOptions` calls it.
        spec: The experiment as it was read, flags included.
        num_trials: Trials that it takes to have ended.
    """

    experiment: str
    flags: dict[str, Any]
    spec: dict[str, Any]
    num_trials: int

    def write(self, path: str) -> None:
        """Writes it into the experiment's directory, or below its URI."""
        filesystem, place = fs.FileSystem.from_uri(path)
        filesystem.create_dir(place)
        with filesystem.open_output_stream(f"{place}/{NOTE}") as stream:
            stream.write(json.dumps(asdict(self), indent=2, default=repr).encode())

    def contradictions(self, spec: dict[str, Any]) -> Iterator[tuple[KeyPath, str]]:
        """Each key that `spec` says something else of, with what it was and is."""
        was, now = dict(_leaves(self.spec)), dict(_leaves(spec))
        for path in {**was, **now}:
            if path[0] not in _PLACES and was.get(path) != now.get(path):
                yield path, f"was {was.get(path, 'not given')}, and is {now.get(path, 'not given')} now"


def read_note(path: str) -> Note | None:
    """The note in an experiment's directory; None where there is none, as earlier releases wrote none.

    Raises:
        ConfigError: It cannot be read.
    """
    filesystem, place = fs.FileSystem.from_uri(path)
    if filesystem.get_file_info(f"{place}/{NOTE}").type is not fs.FileType.File:
        return None
    with filesystem.open_input_stream(f"{place}/{NOTE}") as stream:
        text = stream.read()
    try:
        return Note(**json.loads(text))
    except (ValueError, TypeError) as error:
        said = f"{path}/{NOTE} cannot be read ({error}). Delete it, and give the flags that the run had."
        raise ConfigError([Problem("--resume", "", said)]) from error


def _leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """What stands at each key, as text: what was written and read again is compared with what was not."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    else:
        yield path, json.dumps(value, default=repr)
