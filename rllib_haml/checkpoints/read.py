"""Checkpoints are checked before anything is read from them, and refused with a way out."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pyarrow import fs
from ray.rllib.algorithms.algorithm import Algorithm

from rllib_haml.checkpoints.manifest import MANIFEST, Manifest, agents_of, digest, present_versions
from rllib_haml.sampling.team import Team

logger = logging.getLogger("rllib_haml")
CLASS_FILE = "class_and_ctor_args.pkl"


class CheckpointError(ValueError):
    """A checkpoint cannot be loaded; nothing of it was."""


def verify(path: str, filesystem: fs.FileSystem) -> Manifest:
    """Reads a checkpoint's manifest, and compares every file with it.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        CheckpointError: It is not a checkpoint of this package, or not whole; it names the file, and an
            intact checkpoint beside it if there is one.
    """
    if filesystem.get_file_info(path).type == fs.FileType.NotFound:
        raise FileNotFoundError(f"There is no checkpoint at {path}. {_way_out(path, filesystem)}")
    if not _is_file(f"{path}/{MANIFEST}", filesystem):
        raise CheckpointError(_without_manifest(path, filesystem))
    manifest, fault = _compare(path, filesystem)
    if fault or manifest is None:
        raise CheckpointError(f"The checkpoint {path} is damaged: {fault}. {_way_out(path, filesystem)}")
    return manifest


def check_any(path: Path) -> None:
    """As `verify`, of a checkpoint on this machine; RLlib's own, which have no manifest, pass."""
    place, here = path.expanduser().absolute().as_posix(), fs.LocalFileSystem()
    if _is_file(f"{place}/{MANIFEST}", here) or _stock_class(place, here) is None:
        verify(place, here)


def class_of(path: str, filesystem: fs.FileSystem) -> type:
    """The algorithm's class that a checkpoint was made by.

    Raises:
        CheckpointError: The code that it needs is not here.
    """
    try:
        with filesystem.open_input_stream(f"{path}/{CLASS_FILE}") as stream:
            return pickle.loads(stream.read())["class"]
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"The checkpoint {path} needs code that cannot be imported here: {error}. Put its directory on "
            f"PYTHONPATH, or install its package."
        ) from error


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
    if not _is_ours(algorithm) and not _is_file(f"{place}/{MANIFEST}", here):
        check_any(path)
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


def _compare(path: str, filesystem: fs.FileSystem) -> tuple[Manifest | None, str]:
    """The manifest, and what is wrong with the first file that it does not tell the truth of."""
    try:
        with filesystem.open_input_stream(f"{path}/{MANIFEST}") as stream:
            manifest = Manifest.loads(stream.read())
    except ValueError:
        return None, f"{MANIFEST} cannot be read"
    for name, expected in manifest.files.items():
        if not _is_file(f"{path}/{name}", filesystem):
            return manifest, f"{name} is missing"
        with filesystem.open_input_stream(f"{path}/{name}") as stream:
            if digest(stream) != expected:
                return manifest, f"{name} has changed since it was written (another SHA-256)"
    return manifest, ""


def intact_beside(path: str, filesystem: fs.FileSystem) -> str | None:
    """The intact checkpoint beside this one, the last by name."""
    here = PurePosixPath(path)
    beside = filesystem.get_file_info(fs.FileSelector(str(here.parent), allow_not_found=True))
    for info in sorted(beside, key=lambda info: info.base_name, reverse=True):
        is_one = info.base_name != here.name and _is_file(f"{info.path}/{MANIFEST}", filesystem)
        if is_one and not _compare(info.path, filesystem)[1]:
            return info.path
    return None


def last_intact(path: str, filesystem: fs.FileSystem) -> str | None:
    """The intact checkpoint that was written last, of the run or the runs whose directory `path` is."""
    found = [it for it in _checkpoints_in(path, filesystem) if _is_file(f"{it}/{MANIFEST}", filesystem)]
    found.sort(key=lambda it: filesystem.get_file_info(f"{it}/{MANIFEST}").mtime_ns or 0, reverse=True)
    return next((it for it in found if not _compare(it, filesystem)[1]), None)


def _way_out(path: str, filesystem: fs.FileSystem) -> str:
    other = intact_beside(path, filesystem)
    if other is None:
        return "No intact checkpoint lies beside it."
    return f"{other} beside it is intact: load that one (`rllib train ... --restore {other}`)."


def _without_manifest(path: str, filesystem: fs.FileSystem) -> str:
    if not _is_file(f"{path}/{CLASS_FILE}", filesystem):
        within = _checkpoints_in(path, filesystem)
        hint = f"it holds {within[-1]}: name that one." if within else "one is called `checkpoint_000010`."
        return f"{path} is no checkpoint of an algorithm; {hint}"
    if (stock := _stock_class(path, filesystem)) is not None:
        return (
            f"{path} is a checkpoint of RLlib's {stock.__name__}, not of this package: load it with "
            f"{stock.__name__}.from_checkpoint, or play it with `rllib evaluate {path}`."
        )
    return (
        f"The checkpoint {path} has no {MANIFEST}: it was not written, or not copied, to its end. "
        f"{_way_out(path, filesystem)}"
    )


def _checkpoints_in(path: str, filesystem: fs.FileSystem) -> list[str]:
    """Those of the run, or of the runs, whose directory `path` is."""
    if filesystem.get_file_info(path).type != fs.FileType.Directory:
        return []
    # A run's directory lies in its experiment's.
    runs = [path, *(i.path for i in filesystem.get_file_info(fs.FileSelector(path)) if not i.is_file)]
    return sorted(
        info.path
        for run in runs
        for info in filesystem.get_file_info(fs.FileSelector(run))
        if _is_file(f"{info.path}/{Algorithm.METADATA_FILE_NAME}", filesystem)
    )


def _stock_class(path: str, filesystem: fs.FileSystem) -> type | None:
    """RLlib's algorithm that a checkpoint is of; None if it is this package's, or cannot be told."""
    if not _is_file(f"{path}/{CLASS_FILE}", filesystem):
        return None
    try:
        made_by = class_of(path, filesystem)
    except (CheckpointError, pickle.UnpicklingError, EOFError):
        return None
    return None if _is_ours(made_by) else made_by


def _is_ours(algorithm: type) -> bool:
    return any(base.__module__.startswith("rllib_haml.") for base in algorithm.__mro__)


def _is_file(path: str, filesystem: fs.FileSystem) -> bool:
    return filesystem.get_file_info(path).type == fs.FileType.File
