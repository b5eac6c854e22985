"""Strict YAML -> experiments of RLlib; the exported names load RLlib on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rllib_haml.config.errors import ConfigError

if TYPE_CHECKING:
    from rllib_haml.config.experiment import Experiment
    from rllib_haml.config.parse import load_experiments, parse_experiments

__all__ = ["ConfigError", "Experiment", "load_experiments", "parse_experiments"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from rllib_haml.config import parse

        return getattr(parse, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
