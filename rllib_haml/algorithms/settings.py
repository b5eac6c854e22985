"""What an algorithm can be configured with, read off the builder methods of its config class."""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import or_
from types import NoneType
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.from_config import NotProvided

from rllib_haml.algorithms.rllib_values import VALUES
from rllib_haml.annotations import is_plain, members, mistake


@dataclass(frozen=True)
class Setting:
    """One configurable key: the builder method that takes it, what it may be, and its default."""

    key: str
    builder: str
    annotation: Any
    default: Any

    def apply(self, config: AlgorithmConfig, value: Any) -> None:
        """Sets the key of `config` to `value` as a Python user would, through the builder method."""
        getattr(config, self.builder)(**{self.key: value})

    def attribute(self, config: AlgorithmConfig) -> str:
        """The attribute of `config` that keeps the value: `key`, or `_key` behind a property."""
        hidden = f"_{self.key}"
        return hidden if hidden in vars(config) else self.key

    @property
    def is_plain(self) -> bool:
        """Whether its values are numbers, words, true, false and null, which a config keeps as given."""
        return is_plain(self.annotation)

    def mistake(self, value: Any) -> str | None:
        """What is said of a `value`, as `annotations.plain` has it, that is none for the key; else None."""
        return mistake(self.key, self.annotation, value, self.default)


def settings_of(config: AlgorithmConfig) -> dict[str, Setting]:
    """All keys that a user may set on `config`, a default one of its class."""
    settings: dict[str, Setting] = {}
    for method, parameter in _builder_parameters(type(config)):
        key, default = parameter.name, _default(config, parameter.name)
        annotation = _resolve(parameter.annotation, method)
        if method.__module__.startswith("ray."):
            annotation = VALUES.get(key, _not_null(annotation) if isinstance(default, dict) else annotation)
        # Classes nearer to the algorithm come first and may say another thing.
        settings.setdefault(key, Setting(key, method.__name__, annotation, default))
    return settings


def _builder_parameters(config_class: type) -> Iterator[tuple[Any, inspect.Parameter]]:
    for cls in config_class.__mro__:
        for method in vars(cls).values():
            if not inspect.isfunction(method) or method.__name__.startswith("_"):
                continue
            for parameter in inspect.signature(method).parameters.values():
                if parameter.default is NotProvided and not parameter.name.startswith("_"):
                    yield method, parameter


def _resolve(annotation: Any, method: Any) -> Any:
    if annotation is inspect.Parameter.empty:
        return Any
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {**vars(builtins), **method.__globals__})
    except NameError:
        # The annotation uses a name that its module imports for type checkers only.
        return Any


def _not_null(annotation: Any) -> Any:
    """Without the null that RLlib's annotations admit everywhere."""
    kinds = tuple(member for member in members(annotation) if member is not NoneType)
    return reduce(or_, kinds) if kinds else annotation


def _default(config: AlgorithmConfig, key: str) -> Any:
    for attribute in (f"_{key}", key, f"{key}_str", f"callbacks_{key}"):
        if attribute in vars(config):
            return getattr(config, attribute)
    return None
