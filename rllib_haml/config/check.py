"""Checking one algorithm's config keys, and turning YAML values into what its builder methods take."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.policy.policy import PolicySpec

from rllib_haml.algorithms.settings import Setting, settings_of
from rllib_haml.annotations import accepts, wants_import, written
from rllib_haml.config.document import Document, KeyPath
from rllib_haml.config.errors import did_you_mean
from rllib_haml.config.legacy import RENAMED, Entry
from rllib_haml.config.names import NameProblem, check_environment, load_object


class ConfigChecker:
    """Knows the keys of one algorithm; notes every mistake in the document.

    An algorithm's config class may declare, as class attributes:
        refused_keys: key -> what to use instead, for inherited keys that it does not have.
        model_config_class: The dataclass that lists the keys of `model_config`.
    """

    def __init__(self, default: AlgorithmConfig, algorithm: str, document: Document) -> None:
        self.settings = settings_of(default)
        self._algorithm = algorithm
        self._document = document
        self._refused: Mapping[str, str] = getattr(default, "refused_keys", {})
        self._model = getattr(default, "model_config_class", _rllibs_model(type(default)))
        self._nested = {
            "env": self._environment,
            "policies": self._policies,
            "model_config": self._model_config,
            "evaluation_config": self.partial_config,
            "algorithm_config_overrides_per_module": self._overrides_per_module,
        }

    def known(self, entry: Entry) -> bool:
        """Whether the algorithm has this key; else the mistake is noted."""
        if entry.key in self._refused and entry.value != self._default(entry.key):
            text = f"{self._algorithm} does not take it: {self._refused[entry.key].rstrip('.')}."
            self._document.error(entry.path, text)
            return False
        if entry.key not in self.settings:
            options = {*self.settings, *RENAMED} - {*self._refused}
            self._document.error(
                entry.path, f"unknown key of {self._algorithm}. {did_you_mean(entry.key, options)}"
            )
            return False
        return True

    def value(self, key: str, value: Any, path: KeyPath) -> Any:
        """The plain `value` of `key` as its builder method takes it; mistakes are noted."""
        setting = self.settings[key]
        try:
            if key in self._nested and value is not None:
                return self._nested[key](value, path)
            if wants_import(setting.annotation) and not accepts(setting.annotation, value):
                value = _imported(value)
        except NameProblem as problem:
            self._document.error(path, str(problem))
            return value
        if said := setting.mistake(value):
            self._document.error(path, said)
        return value

    def _default(self, key: str) -> Any:
        return self.settings[key].default if key in self.settings else None

    def partial_config(self, raw: Any, path: KeyPath) -> Any:
        """Checks a mapping of config keys inside the config, as `evaluation_config` is one."""
        if not isinstance(raw, dict):
            self._document.error(path, f"given {raw!r}, expected a mapping of config keys.")
            return raw
        entries = [Entry(str(key), value, (*path, key)) for key, value in raw.items()]
        return {e.key: self.value(e.key, e.value, e.path) for e in entries if self.known(e)}

    def _environment(self, name: Any, path: KeyPath) -> Any:
        check_environment(name)
        return name

    def _policies(self, policies: Any, path: KeyPath) -> Any:
        names = policies if isinstance(policies, (list, dict)) else None
        if not names or not all(isinstance(name, str) for name in names):
            text = f"given {written(policies)}, expected policy names: [first, second]."
            self._document.error(path, text)
            return policies
        if isinstance(policies, list):
            # A dict keeps the order; RLlib makes a set of a list, whose order changes between runs.
            return {name: PolicySpec() for name in policies}
        return {name: self._policy(spec, (*path, name)) for name, spec in policies.items()}

    def _policy(self, spec: Any, path: KeyPath) -> PolicySpec:
        config = spec
        if isinstance(spec, list) and spec[:-1] == [None, None, None]:
            # RLlib's old (class, observation space, action space, config).
            config = spec[-1]
        elif isinstance(spec, dict) and set(spec) == {"config"}:
            config = spec["config"]
        elif spec not in (None, {}):
            text = f"given {written(spec)}, expected nothing or {{config: {{...}}}}."
            self._document.error(path, text)
            return PolicySpec()
        return PolicySpec(config=self.partial_config(config or {}, path))

    def _overrides_per_module(self, overrides: Any, path: KeyPath) -> Any:
        if not isinstance(overrides, dict):
            self._document.error(path, f"given {overrides!r}, expected {{module: {{key: value}}}}.")
            return overrides
        return {module: self.partial_config(config, (*path, module)) for module, config in overrides.items()}

    def _model_config(self, model: Any, path: KeyPath) -> Any:
        if not isinstance(model, dict):
            self._document.error(path, f"given {written(model)}, expected a mapping.")
        elif self._model is not None:
            fields = _fields(self._model)
            for key, value in model.items():
                self._model_key(key, value, fields, (*path, key))
        return model

    def _model_key(self, key: Any, value: Any, fields: Mapping[str, Setting], path: KeyPath) -> None:
        if key not in fields:
            text = f"unknown key of {self._algorithm}'s networks. {did_you_mean(key, fields)}"
            self._document.error(path, text)
        elif said := fields[key].mistake(value):
            self._document.error(path, said)


def _rllibs_model(config_class: type) -> type | None:
    # Other packages' networks read keys of their own; their config class may declare them.
    return DefaultModelConfig if config_class.__module__.startswith("ray.rllib.") else None


def _fields(model_class: type) -> dict[str, Setting]:
    hints = typing.get_type_hints(model_class, include_extras=True)
    return {
        field.name: Setting(field.name, "rl_module", hints[field.name], field.default)
        for field in dataclasses.fields(model_class)
    }


def _imported(value: Any) -> Any:
    """Import paths replaced by what they name; `{type: path, **kwargs}` is called with kwargs."""
    if isinstance(value, str):
        return load_object(value)
    if isinstance(value, list):
        return [_imported(item) for item in value]
    if isinstance(value, dict) and "type" in value:
        return load_object(value["type"])(**{k: v for k, v in value.items() if k != "type"})
    return value
