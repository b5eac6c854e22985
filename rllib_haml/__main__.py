"""`python -m rllib_haml` is the `rllib` command."""

from __future__ import annotations

from rllib_haml.cli import main

if __name__ == "__main__":
    main()
