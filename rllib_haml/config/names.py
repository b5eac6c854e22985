"""From the names in a YAML file to objects: algorithms, environments, import paths."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.tune.registry import ENV_CREATOR, TRAINABLE_CLASS, _global_registry, get_trainable_cls

from rllib_haml.config.errors import did_you_mean


class NameProblem(ValueError):
    """A name that stands for nothing; the message says what to write instead."""


# Modules of optional environments -> the extra of this package that installs them.
_EXTRAS = {
    "gymnasium_robotics": "mujoco",
    "mujoco": "mujoco",
    "mpe2": "mpe",
    "matplotlib": "plots",
}


def algorithm_class(name: Any) -> type[Algorithm]:
    """The algorithm that is registered, or can be imported, under `name`."""
    if isinstance(name, str) and "." in name:
        cls = load_object(name)
    elif isinstance(name, str) and (name in ALGORITHMS or _registered(TRAINABLE_CLASS, name)):
        cls = get_trainable_cls(name)
    else:
        options = {*ALGORITHMS, *_registered_names(TRAINABLE_CLASS)}
        raise NameProblem(f"{name!r} is no algorithm. {did_you_mean(name, options)}")
    if not (inspect.isclass(cls) and issubclass(cls, Algorithm)):
        raise NameProblem(f"{name!r} is no RLlib Algorithm but {cls!r}.")
    return cls


def check_environment(name: Any) -> None:
    """Makes sure that RLlib will find the environment `name`.

    Raises:
        NameProblem: It is neither registered, nor an id of gymnasium, nor an import path.
    """
    if not isinstance(name, str):
        raise NameProblem(f"given {name!r}, expected the name of an environment.")
    if _registered(ENV_CREATOR, name):
        return
    if name in gym.registry:
        return
    if "." in name:
        load_object(name)
        return
    options = {*_registered_names(ENV_CREATOR), *gym.registry}
    raise NameProblem(
        f"{name!r} is no registered environment. {did_you_mean(name, options)} "
        "An own one can be named by its import path: `my_package.MyEnv`."
    )


def load_object(path: str) -> Any:
    """Imports `package.module.Name` or `package.module:Name`.

    Raises:
        NameProblem: There is no such object; a missing optional package is named.
    """
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if not module_name:
        raise NameProblem(f"{path!r} is no import path: write `package.module.Name`.")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise NameProblem(f"{path!r} cannot be imported: {error}. {missing_extra(error)}") from error
    if not hasattr(module, name):
        hint = did_you_mean(name, (option for option in dir(module) if option[0] != "_"))
        raise NameProblem(f"{path!r}: `{module_name}` has no `{name}`. {hint}")
    return getattr(module, name)


def missing_extra(error: ImportError) -> str:
    """How to install the package that `error` misses."""
    package = (error.name or "").partition(".")[0]
    if package in _EXTRAS:
        return f"Type: pip install 'rllib-haml[{_EXTRAS[package]}]'"
    return f"Is `{package}` installed, and is the directory it lies in on PYTHONPATH?"


def _registered(category: str, name: str) -> bool:
    return _global_registry.contains(category, name)


def _registered_names(category: str) -> set[str]:
    # Before `ray.init` the registry only keeps its values to send them later.
    entries = {*_global_registry._to_flush, *_global_registry._registered}
    names = {key for kind, key in entries if kind == category}
    return {name for name in names if not name.startswith("__")}
