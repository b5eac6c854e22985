"""What reaches the terminal: this package's own words, and those of Ray only if asked for."""

from __future__ import annotations

import importlib
import logging
import os
import time
import warnings

import click

_SAME_TIME_S = 5.0


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
        # It warns that JAX is not imported.
        logging.getLogger("ray.rllib.utils.framework").setLevel(logging.ERROR)
        # Importing RLlib sets the levels of its loggers.
        importlib.import_module("ray.rllib")
        silence_ray()


def silence_ray() -> None:
    """Call again after `ray.init`, which sets the levels of Ray's loggers anew."""
    # The last tells that RLlib makes its own modules in an old way.
    for name in ("ray.rllib", "ray.tune", "ray.train", "ray._common.deprecation"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def show_worker_logs_of_this_package() -> None:
    """Of what Ray's workers print, lets through only the lines that this package logs."""
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    dispatcher.remove_handler("ray_print_logs")
    last_said: dict[str, float] = {}

    def show(batch: dict) -> None:
        now = time.monotonic()
        for line in batch["lines"]:
            if "rllib_haml:" not in line:
                continue
            text = line.partition("rllib_haml:")[2].strip()
            # Workers say the same thing at the same time; said again later, it happened again.
            if now - last_said.get(text, -_SAME_TIME_S) >= _SAME_TIME_S:
                click.echo(text, err=True)
            last_said[text] = now

    dispatcher.add_handler("rllib_haml", show)
