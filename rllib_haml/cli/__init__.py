"""The `rllib` command. Its modules import Ray inside the commands: `--help` must not wait for it."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the `rllib` command."""
    from rllib_haml.cli.app import rllib

    # As with `python script.py`, modules beside the user can be imported by name.
    sys.path.append(os.getcwd())
    rllib()
