"""Environments by name: this package's own, RLlib's registered ones, and import paths."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pettingzoo import ParallelEnv
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
from ray.tune.registry import ENV_CREATOR, _global_registry, register_env

from rllib_haml.envs.wrappers import wrap
from rllib_haml.nearest import did_you_mean, nearest
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.no_team import way_out
from rllib_haml.sampling.parallel_team_env import ParallelTeamEnv

Creator = Callable[[Mapping[str, Any]], MultiAgentEnv]

OWN: dict[str, str] = {
    "mamujoco": "rllib_haml.envs.mamujoco:make",
    "mpe": "rllib_haml.envs.mpe:make",
    "smax": "rllib_haml.envs.smax:make",
    "smac": "rllib_haml.envs.smac:make_smac",
    "smacv2": "rllib_haml.envs.smac:make_smacv2",
    "rware": "rllib_haml.envs.warehouse:make_rware",
    "lbf": "rllib_haml.envs.warehouse:make_lbf",
    "job_shop": "rllib_haml.envs.job_shop:make",
    "matrix_game": "rllib_haml.envs.matrix_games:make_matrix_game",
    "differential_game": "rllib_haml.envs.matrix_games:make_differential_game",
}
"""Names that `register_envs` gives to RLlib, and what makes them. Their `env_config` holds the
maker's arguments and, for any of them, `wrappers`."""


def register_envs() -> None:
    """Registers `OWN` with Ray; may be called any number of times, loads no environment."""
    for name, path in OWN.items():
        register_env(name, PathCreator(path))


def registered_envs() -> list[str]:
    """Names that this process has registered and the package's own, in alphabetical order."""
    categories = [*_global_registry._to_flush, *_global_registry._registered]
    names = {name for category, name in categories if category == ENV_CREATOR}
    return sorted(names | set(OWN))


def resolve_env(env: Any) -> Creator:
    """What makes the environment that a config names, from an `env_config`.

    Args:
        env: A name registered with RLlib; or a `MultiAgentEnv` class, a PettingZoo `ParallelEnv`
            class or a function that returns one of the two, or the import path of such a thing,
            "pkg.mod:Thing" or "pkg.mod.Thing".

    Raises:
        ValueError: It is nothing of these; the message names the nearest registered name.
    """
    if callable(env):
        return ObjectCreator(env)
    name_or_path = str(env)
    if name_or_path in OWN:
        register_envs()
    if _global_registry.contains(ENV_CREATOR, name_or_path):
        return _global_registry.get(ENV_CREATOR, name_or_path)
    if ":" in name_or_path or "." in name_or_path:
        creator = PathCreator(name_or_path)
        creator.load()
        # RLlib's own env runner looks the name up again.
        register_env(name_or_path, creator)
        return creator
    names = registered_envs()
    hint = did_you_mean(name_or_path, names)
    raise ValueError(
        f"unknown environment {name_or_path!r}. {hint}Registered are: {', '.join(names)}. An own "
        "one is named by its path, my_package.my_module:MyEnv"
    )


class PathCreator:
    """Makes the environment at an import path; picklable, as RLlib sends creators to its actors."""

    def __init__(self, path: str) -> None:
        self.path = path

    def load(self) -> Any:
        """The class or function at the path.

        Raises:
            ValueError: There is none.
        """
        module_name, _, name = self.path.rpartition(":" if ":" in self.path else ".")
        try:
            target = getattr(importlib.import_module(module_name), name, None)
        except ModuleNotFoundError as error:
            # A module that exists but lacks something that it imports speaks for itself.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise ValueError(f"environment {self.path!r}: {error}") from error
        if not callable(target):
            raise ValueError(
                f"environment {self.path!r}: module {module_name} has no class or function {name!r}"
            )
        return target

    def __call__(self, env_config: Mapping[str, Any]) -> MultiAgentEnv:
        """One environment; a PettingZoo one comes as `ParallelTeamEnv`.

        Raises:
            TypeError: What was made is neither, or does not take these arguments.
            ValueError: `wrappers` are wrong, or given to an environment that takes none.
            EnvironmentFault: Its own code raised anything else.
        """
        arguments = dict(env_config)
        wrappers = arguments.pop("wrappers", None)
        target = self.load()
        try:
            if isinstance(target, type) and issubclass(target, MultiAgentEnv):
                made = _construct(self.path, target, env_config)
            else:
                made = _call(self.path, target, arguments, env_config)
        except (ValueError, TypeError, ImportError, EnvironmentFault):
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise EnvironmentFault(cause, environment=self.path, method="__init__") from error
        return _finish(self.path, made, wrappers)


class ObjectCreator(PathCreator):
    """Makes the environment of a class or function that is given itself."""

    def __init__(self, target: Callable[..., Any]) -> None:
        super().__init__(getattr(target, "__qualname__", repr(target)))
        self._target = target

    def load(self) -> Any:
        return self._target


def _construct(path: str, target: Any, env_config: Mapping[str, Any]) -> Any:
    """Calls as RLlib does, with the whole `env_config`."""
    try:
        inspect.signature(target).bind(env_config)
    except TypeError as error:
        raise TypeError(
            f"environment {path}: {error}. RLlib hands it `env_config`: write "
            f"`def __init__(self, config=None)`."
        ) from error
    return target(env_config)


def _call(
    path: str, target: Callable[..., Any], arguments: dict[str, Any], env_config: Mapping[str, Any]
) -> Any:
    """Calls with keyword arguments or, in RLlib's way, with the whole `env_config`."""
    try:
        signature = inspect.signature(target)
    except ValueError:  # built in: it cannot be asked
        return target(**arguments)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        names = set(signature.parameters)
        takes_one = len(names) == 1 and not names & set(arguments)
        if takes_one and not isinstance(target, type):
            return target(env_config)
        unknown = [key for key in arguments if key not in names]
        near = nearest(unknown[0], names) if unknown else None
        hint = f"; did you mean {near!r} instead of {unknown[0]!r}?" if near else ""
        raise TypeError(f"env_config of {path}: {error}{hint}") from error
    return target(**arguments)


def _finish(path: str, made: Any, wrappers: Any) -> MultiAgentEnv:
    if type(made) in (ParallelTeamEnv, ParallelPettingZooEnv):
        made = made.par_env
    if isinstance(made, ParallelEnv):
        return ParallelTeamEnv(wrap(made, wrappers) if wrappers else made)
    if not isinstance(made, MultiAgentEnv):
        raise TypeError(
            f"environment {path} made a {type(made).__name__}; expected an RLlib MultiAgentEnv or "
            f"a PettingZoo ParallelEnv. {way_out(made)}"
        )
    if wrappers:
        raise ValueError(
            f"wrappers are SuperSuit's and need a PettingZoo ParallelEnv; {path} made the RLlib "
            f"environment {type(made).__name__}. Wrap it in its own code"
        )
    return made
