"""RLlib's names, where its own annotations say something else than what they are for."""

from __future__ import annotations

from typing import Any

from ray.rllib.utils import from_config

# The default of a config's keyword arguments, whatever their type.
NotProvided: Any = from_config.NotProvided
