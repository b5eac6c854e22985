"""The `rllib` command. Its modules import Ray inside the commands: `--help` must not wait for it."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the `rllib` command."""
    # RLlib would import JAX and Flax where they are installed, here and in every worker: a second each time.
    os.environ.setdefault("RLLIB_TEST_NO_JAX_IMPORT", "1")
    from rllib_haml.cli.app import rllib

    # As with `python script.py`, modules beside the user can be imported by name.
    sys.path.append(os.getcwd())
    rllib()
