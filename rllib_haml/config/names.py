"""From the names in a YAML file to objects: algorithms, environments, import paths."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.tune.registry import (
    TRAINABLE_CLASS,
    _global_registry,
    get_trainable_cls,
    register_env,
)

from rllib_haml.config.errors import did_you_mean
from rllib_haml.envs.registry import OWN, registered_envs, resolve_env


class NameProblem(ValueError):
    """A name that stands for nothing; the message says what to write instead."""


# Modules of optional environments -> the extra of this package that installs them.
_EXTRAS = {
    "gymnasium_robotics": "mujoco",
    "mujoco": "mujoco",
    "mpe2": "mpe",
    "jaxmarl": "smax",
    "jax": "smax",
    "rware": "warehouse",
    "lbforaging": "warehouse",
    "matplotlib": "plots",
}


def algorithm_class(name: Any) -> type[Algorithm]:
    """The algorithm that is registered, or can be imported, under `name`."""
    if isinstance(name, str) and "." in name:
        cls = load_object(name)
    elif isinstance(name, str) and (name in ALGORITHMS or _global_registry.contains(TRAINABLE_CLASS, name)):
        cls = get_trainable_cls(name)
    else:
        options = {*ALGORITHMS, *_registered_trainables()}
        raise NameProblem(f"{name!r} is no algorithm. {did_you_mean(name, options)}")
    if not (inspect.isclass(cls) and issubclass(cls, Algorithm)):
        raise NameProblem(f"{name!r} is no RLlib Algorithm but {cls!r}.")
    return cls


def check_environment(name: Any) -> None:
    """Makes sure that RLlib will find the environment `name`; registers an import path.

    Raises:
        NameProblem: It is neither registered, nor an id of gymnasium, nor an import path.
    """
    if not isinstance(name, str):
        raise NameProblem(f"given {name!r}, expected the name of an environment.")
    if name in registered_envs() or name in gym.registry:
        return
    if "." in name or ":" in name:
        load_object(name)
        # RLlib's multi-agent sampler finds registered environments only.
        try:
            register_env(name, resolve_env(name))
        except ValueError as error:
            raise NameProblem(str(error)) from error
        return
    near = did_you_mean(name, registered_envs())
    hint = near if near.startswith("Did") else did_you_mean(name, gym.registry)
    raise NameProblem(
        f"{name!r} is no registered environment. {hint if hint.startswith('Did') else near} "
        "An own one is named by its import path: `my_module:MyEnv`."
    )


def try_environment(name: Any, env_config: Mapping[str, Any]) -> None:
    """Makes one of this package's environments, to see that its extra is there and fits.

    Raises:
        ImportError: Its extra is not installed; the message says what to type.
        ValueError, TypeError: It does not take this `env_config`.
    """
    if name in OWN:
        resolve_env(name)(env_config).close()


def load_object(path: str) -> Any:
    """Imports `package.module.Name` or `package.module:Name`.

    Raises:
        NameProblem: There is no such object; a missing optional package is named.
    """
    module_name, _, name = path.replace(":", ".").rpartition(".")
    if not (module_name and name):
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


def _registered_trainables() -> set[str]:
    # Before `ray.init` the registry only keeps its values to send them later.
    entries = {*_global_registry._to_flush, *_global_registry._registered}
    return {key for kind, key in entries if kind == TRAINABLE_CLASS and not key.startswith("__")}
