"""Whether a config's values can be, as `config.validate()` finds out; YAML says the same, with lines."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_haml.algorithms.settings import Setting, settings_of
from rllib_haml.annotations import plain
from rllib_haml.nearest import did_you_mean


def check_values(config: AlgorithmConfig) -> None:
    """Looks at every number, word and switch of `config`, and of the partial configs in it.

    numpy's numbers become Python's, which RLlib asks for.

    Raises:
        ValueError: A value cannot be; it names the key, what was given, and what it may be. Or a partial
            config has a key that the config lacks.
    """
    settings = _settings(type(config))
    # A refused key may have values that say nothing, and no others: that is looked at where it is refused.
    refused = getattr(config, "refused_keys", {})
    for key, setting in settings.items():
        attribute = setting.attribute(config)
        if setting.is_plain and attribute in vars(config) and key not in refused:
            setattr(config, attribute, _checked(key, setting, getattr(config, attribute)))
    for where, values in _partial_configs(config):
        for given, value in list(values.items()):
            key = config._translate_special_keys(given, warn_deprecated=False)
            if key in settings and settings[key].is_plain:
                values[given] = _checked(f"{where}.{given}", settings[key], value)
            elif key not in settings and not hasattr(config, key):
                hint = did_you_mean(given, settings)
                raise ValueError(f"{where}.{given}: {type(config).__name__} has no such key. {hint}".strip())


def _checked(name: str, setting: Setting, given: Any) -> Any:
    """`given` as Python's own value."""
    value = plain(given)
    if said := setting.mistake(value):
        raise ValueError(f"{name}: {said}")
    return value


def _partial_configs(config: AlgorithmConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(config.evaluation_config, dict):
        yield "evaluation_config", config.evaluation_config
    for module, values in config.algorithm_config_overrides_per_module.items():
        yield f"algorithm_config_overrides_per_module.{module}", values


@cache
def _settings(config_class: type[AlgorithmConfig]) -> dict[str, Setting]:
    return settings_of(config_class())
