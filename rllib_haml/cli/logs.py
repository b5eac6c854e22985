"""What reaches the terminal: this package's own words, and those of Ray only if asked for."""

from __future__ import annotations

import importlib
import logging
import os
import warnings

import click


class _Terminal(logging.Handler):
    """Prints log records like the rest of the command's output."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        click.echo(f"{prefix}{record.getMessage()}", err=True)


def set_up_logs(verbosity: int) -> None:
    """Sets up the loggers of this process; imports RLlib.

    Args:
        verbosity: 0 for this package alone, 1 with Ray's own logs and tables, 2 with debugging.
    """
    own = logging.getLogger("rllib_haml")
    own.handlers = [_Terminal()]
    own.propagate = False
    own.setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)
    if verbosity == 0:
        # Tune's new output prints a banner at any verbosity; its old one can be silent.
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
        warnings.simplefilter("ignore")
        # Importing RLlib sets the levels of its loggers.
        importlib.import_module("ray.rllib")
        silence_ray()


def silence_ray() -> None:
    """Call again after `ray.init`, which sets the levels of Ray's loggers anew."""
    for name in ("ray.rllib", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def show_worker_logs_of_this_package() -> None:
    """Of what Ray's workers print, lets through only the lines that this package logs."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    dispatcher.remove_handler("ray_print_logs")
    seen: set[str] = set()

    def show(batch: dict) -> None:
        for line in batch["lines"]:
            # Every worker says the same thing.
            if "rllib_haml:" in line and line not in seen:
                seen.add(line)
                click.echo(line.partition("rllib_haml:")[2].strip(), err=True)

    dispatcher.add_handler("rllib_haml", show)
