"""The arguments that several commands take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from rllib_haml.config.errors import ConfigError, Problem


@contextmanager
def local_checkpoint(place: str) -> Iterator[Path]:
    """A checkpoint's directory; that of one below a URI is a copy, removed at the end."""
    if "://" not in place:
        yield Path(place)
        return
    from ray.tune import Checkpoint

    with ExitStack() as stack:
        try:
            path = stack.enter_context(Checkpoint(place).as_directory())
        # pyarrow's error for a scheme that it does not know is a ValueError.
        except (OSError, ValueError) as error:
            raise ConfigError([Problem("CHECKPOINT", "", f"{place} cannot be read: {error}.")]) from error
        yield Path(path)


def _directory(context: click.Context, parameter: click.Parameter, value: str) -> Path:
    return context.with_resource(local_checkpoint(value))


# Handed to the command as a Path.
CHECKPOINT = click.argument("checkpoint", metavar="CHECKPOINT", callback=_directory)
