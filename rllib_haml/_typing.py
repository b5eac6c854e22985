"""Types that no room owns."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from ray.rllib.utils import from_config

AgentID = Hashable

# The default of a config's keyword arguments, whatever their type: RLlib's annotation says what it is.
NotProvided: Any = from_config.NotProvided
