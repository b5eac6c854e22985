"""From checked config keys to AlgorithmConfigs: one per point of the search space."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_haml.algorithms.settings import Setting
from rllib_haml.config.check import ConfigChecker
from rllib_haml.config.document import Document, KeyPath
from rllib_haml.config.legacy import Entry
from rllib_haml.config.names import try_environment
from rllib_haml.config.search import contains, expand, is_eval, is_grid
from rllib_haml.sampling.faults import EnvironmentFault

# What configs raise about their values.
_MISTAKES = (ValueError, TypeError, AssertionError, ImportError, EnvironmentFault)

# Beyond so many points of a search space the others are trusted.
_MAX_VARIANTS_CHECKED = 256


@dataclass(frozen=True)
class Choice:
    """A config key with all values that it takes in the search."""

    setting: Setting
    raw: Any
    values: list[Any]
    path: KeyPath

    @property
    def is_searched(self) -> bool:
        """Whether Tune has to choose a value."""
        return contains(self.raw, is_grid) or contains(self.raw, is_eval)


def choices(entries: Iterable[Entry], checker: ConfigChecker) -> list[Choice]:
    """The checked keys; what is wrong with the others stands in the document."""
    return [
        Choice(
            setting=checker.settings[entry.key],
            raw=entry.value,
            values=[checker.value(entry.key, value, entry.path) for value in expand(entry.value)],
            path=entry.path,
        )
        for entry in entries
        if checker.known(entry)
    ]


def variants(
    default: AlgorithmConfig, chosen: list[Choice], path: KeyPath, document: Document
) -> list[AlgorithmConfig]:
    """The config of every point of the search space, validated by RLlib; mistakes are noted."""
    configs = []
    for values in itertools.islice(_points(chosen), _MAX_VARIANTS_CHECKED):
        config = default.copy(copy_frozen=False)
        for choice, value in zip(chosen, values, strict=True):
            _apply(choice, value, config, document)
        configs.append(config)
        _validate(config, chosen, path, document)
    return configs


def param_space(first: AlgorithmConfig, chosen: list[Choice]) -> AlgorithmConfig:
    """The first variant with Tune's search markers in place of the searched values."""
    space = first.copy(copy_frozen=False)
    for choice in chosen:
        if not choice.is_searched:
            continue
        attribute = choice.setting.attribute(first)
        if contains(choice.raw, is_eval):
            # Tune evaluates anew for every trial.
            marker = choice.raw
        else:
            marker = {"grid_search": list(_attribute_values(first, choice, attribute))}
        setattr(space, attribute, marker)
    return space


def search_size(chosen: list[Choice]) -> int:
    """The number of points of the search space."""
    return math.prod(len(choice.values) for choice in chosen)


def _points(chosen: list[Choice]) -> Iterator[tuple[Any, ...]]:
    return itertools.product(*(choice.values for choice in chosen))


def _attribute_values(first: AlgorithmConfig, choice: Choice, attribute: str) -> Iterator[Any]:
    for value in choice.values:
        config = first.copy(copy_frozen=False)
        choice.setting.apply(config, value)
        yield getattr(config, attribute)


def _apply(choice: Choice, value: Any, config: AlgorithmConfig, document: Document) -> None:
    try:
        choice.setting.apply(config, value)
    except _MISTAKES as error:
        document.error(choice.path, _message(error))


def _validate(config: AlgorithmConfig, chosen: list[Choice], path: KeyPath, document: Document) -> None:
    paths = {choice.setting.key: choice.path for choice in chosen}
    where = paths.get("env_config") or paths.get("env") or path
    if not can_be_made(config.env, config.env_config, where, document):
        return
    try:
        config.copy(copy_frozen=False).validate()
    except _MISTAKES as error:
        where = _blamed(error, paths, path)
        document.error(where, _message(error).removeprefix(f"{where[-1]}: "))


def can_be_made(env: Any, env_config: Mapping[str, Any], path: KeyPath, document: Document) -> bool:
    """Whether this package's environment `env` takes its `env_config`; else that is noted at `path`."""
    try:
        try_environment(env, env_config)
    except _MISTAKES as error:
        document.error(path, _message(error))
        return False
    return True


def _blamed(error: Exception, paths: dict[str, KeyPath], path: KeyPath) -> KeyPath:
    """The first key that the config's message names, or the experiment as a whole."""
    paths = {"environment": paths.get("env", path), **paths}
    words = re.findall(r"\w+", str(error))
    return next((paths[word] for word in words if word in paths), path)


def _message(error: Exception) -> str:
    text = str(error).partition("\nTo suppress all validation errors")[0]
    return " ".join(text.split()) or type(error).__name__
