"""Checkpoints are checked before anything is read from them, and refused with a way out."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyarrow import fs
from ray.rllib.algorithms.algorithm import Algorithm

from rllib_haml.checkpoints.intact import checkpoints_in, compare, intact_beside, is_file
from rllib_haml.checkpoints.manifest import MANIFEST, Manifest, agents_of, present_versions
from rllib_haml.checkpoints.named_class import named_class
from rllib_haml.sampling.team import Team

logger = logging.getLogger("rllib_haml")
CLASS_FILE = "class_and_ctor_args.pkl"


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded; nothing of it was."""


def verify(path: str, filesystem: fs.FileSystem) -> Manifest:
    """Reads a checkpoint's manifest, and compares every file with it; nothing is unpickled.

    What the manifest does not list is refused, too: RLlib would rather read a `.msgpack` than the `.pkl`
    beside it. A manifest tells of damage, not of malice: whoever rewrites files can rewrite it as well.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        CheckpointError: It is not a checkpoint of this package, or not whole; it names the file, and an
            intact checkpoint beside it if there is one.
    """
    if filesystem.get_file_info(path).type == fs.FileType.NotFound:
        raise FileNotFoundError(f"There is no checkpoint at {path}. {_way_out(path, filesystem)}")
    if not is_file(f"{path}/{MANIFEST}", filesystem):
        raise CheckpointError(_without_manifest(path, filesystem))
    manifest, fault = compare(path, filesystem)
    if fault or manifest is None:
        raise CheckpointError(f"The checkpoint {path} is damaged: {fault}. {_way_out(path, filesystem)}")
    return manifest


def check_any(path: Path) -> None:
    """As `verify`, of a checkpoint on this machine; RLlib's own, which have no manifest, pass.

    They are told by the name of the class that made them, and not unpickled.
    """
    place, here = path.expanduser().absolute().as_posix(), fs.LocalFileSystem()
    if is_file(f"{place}/{MANIFEST}", here) or _stock_class(place, here) is None:
        verify(place, here)


def class_of(path: str, filesystem: fs.FileSystem) -> type[Algorithm]:
    """The algorithm's class that a checkpoint was made by; see `made_of`."""
    return made_of(path, filesystem)["class"]


def config_of(path: str, filesystem: fs.FileSystem) -> Any:
    """The config that a checkpoint's algorithm was built with, or a dict of its values; see `made_of`."""
    made = made_of(path, filesystem)
    try:
        (config,), _ = made["ctor_args_and_kwargs"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}/{CLASS_FILE} does not say what config it was made with.") from error
    return config


def made_of(path: str, filesystem: fs.FileSystem) -> dict[str, Any]:
    """Unpickles the algorithm's class and arguments, which runs their code: only of what `verify` took.

    Raises:
        CheckpointError: The code that it needs is not here, or it cannot be read.
    """
    try:
        with filesystem.open_input_stream(f"{path}/{CLASS_FILE}") as stream:
            made = pickle.loads(stream.read())
        if not issubclass(made["class"], Algorithm):
            raise TypeError(f"{made['class']} is no algorithm")
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"The checkpoint {path} needs code that cannot be imported here: {error}. Put its directory on "
            f"PYTHONPATH, or install its package."
        ) from error
    # Of a pickle that is not whole, or not what it says, anything may come.
    except Exception as error:
        raise CheckpointError(f"{path}/{CLASS_FILE} cannot be read: {error!r}.") from error
    return made


def warn_unverified(path: Path) -> None:
    """To be said of RLlib's own checkpoints, before one is loaded."""
    logger.warning(
        "%s is RLlib's own checkpoint: it has no manifest to be verified by, and loading it runs whatever "
        "code its pickles name. Load only what you trust.",
        path,
    )


def check_fit(path: Path, algorithm: type, teams: Iterable[Team]) -> None:
    """As `check_any`, and refuses what `algorithm` could not go on from.

    Args:
        path: On this machine.
        algorithm: This package's or RLlib's.
        teams: That it is to go on with; none where it is RLlib's.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        CheckpointError: It is damaged, or another algorithm's or team's.
    """
    place, here = path.expanduser().absolute().as_posix(), fs.LocalFileSystem()
    if not _is_ours(algorithm) and not is_file(f"{place}/{MANIFEST}", here):
        check_any(path)
        warn_unverified(path)
        return
    manifest = verify(place, here)
    _refuse_other_algorithm(place, manifest, algorithm)
    for team in teams:
        _refuse_other_team(place, manifest, team)


def refuse_foreign(path: str, manifest: Manifest, algorithm: type, team: Team) -> None:
    """Refuses another algorithm's or another team's checkpoint; tells of other versions in the log.

    Raises:
        CheckpointError: It says what differs.
    """
    _refuse_other_algorithm(path, manifest, algorithm)
    _refuse_other_team(path, manifest, team)
    others = {k: (v, now) for k, v in manifest.versions.items() if (now := present_versions().get(k)) != v}
    if others:
        told = ", ".join(f"{name} {before} (here {now})" for name, (before, now) in others.items())
        logger.info("The checkpoint %s was made with %s.", path, told)


def _refuse_other_algorithm(path: str, manifest: Manifest, algorithm: type) -> None:
    if manifest.algorithm not in (base.__name__ for base in algorithm.__mro__):
        raise CheckpointError(
            f"The checkpoint {path} is {manifest.algorithm}'s, this is {algorithm.__name__}: load it with "
            f"{manifest.algorithm}.from_checkpoint, or set `run: {manifest.algorithm}`. Its policies alone "
            f"are RLModules: RLModule.from_checkpoint('{path}/learner_group/learner/rl_module/<policy>')."
        )


def _refuse_other_team(path: str, manifest: Manifest, team: Team) -> None:
    here = agents_of(team)
    if list(here) != list(manifest.agents):
        raise CheckpointError(
            f"The checkpoint {path} is of the agents {list(manifest.agents)}, this team's are {list(here)}: "
            f"give the environment (`env`, `env_config`) that it was made with."
        )
    for agent, about in here.items():
        for key, value in about.items():
            if (before := manifest.agents[agent][key]) != value:
                raise CheckpointError(
                    f"The checkpoint {path} does not fit: {key} of agent {agent!r} was {before}, and is "
                    f"{value}. Give the environment and the policies that it was made with."
                )


def _way_out(path: str, filesystem: fs.FileSystem) -> str:
    other = intact_beside(path, filesystem)
    if other is None:
        return "No intact checkpoint lies beside it."
    return f"{other} beside it is intact: load that one (`rllib train ... --restore {other}`)."


def _without_manifest(path: str, filesystem: fs.FileSystem) -> str:
    if not is_file(f"{path}/{CLASS_FILE}", filesystem):
        within = checkpoints_in(path, filesystem)
        hint = f"it holds {within[-1]}: name that one." if within else "one is called `checkpoint_000010`."
        return f"{path} is no checkpoint of an algorithm; {hint}"
    if (stock := _stock_class(path, filesystem)) is not None:
        return (
            f"{path} is a checkpoint of RLlib's {stock}, not of this package: load it with "
            f"{stock}.from_checkpoint, or play it with `rllib evaluate {path}`."
        )
    return (
        f"The checkpoint {path} has no {MANIFEST}: it was not written, or not copied, to its end. "
        f"{_way_out(path, filesystem)}"
    )


def _stock_class(path: str, filesystem: fs.FileSystem) -> str | None:
    """Name of RLlib's algorithm that a checkpoint is of; None if it is this package's, or cannot be told."""
    if not is_file(f"{path}/{CLASS_FILE}", filesystem):
        return None
    with filesystem.open_input_stream(f"{path}/{CLASS_FILE}") as stream:
        data = stream.read()
    if (named := named_class(data)) is None:
        return None
    module, name = named
    # A user's own algorithm is this package's if its checkpoint has anything of this package.
    is_stock = module.startswith("ray.rllib.") or b"rllib_haml." not in data
    return name if is_stock else None


def _is_ours(algorithm: type) -> bool:
    return any(base.__module__.startswith("rllib_haml.") for base in algorithm.__mro__)
