"""Whether a checkpoint's files are what its manifest says, and which checkpoints nearby are intact."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pyarrow import fs
from ray.rllib.algorithms.algorithm import Algorithm

from rllib_haml.checkpoints.manifest import MANIFEST, Manifest, digest, files_in

# `ray.tune.Checkpoint.set_metadata` writes it; nothing is loaded from it.
_TUNE_METADATA = ".metadata.json"


def compare(path: str, filesystem: fs.FileSystem) -> tuple[Manifest | None, str]:
    """The manifest, and what is wrong with the first file that it does not tell the truth of."""
    try:
        with filesystem.open_input_stream(f"{path}/{MANIFEST}") as stream:
            manifest = Manifest.loads(stream.read())
    except (ValueError, OSError) as error:
        return None, f"{MANIFEST} cannot be read: {error}"
    try:
        return manifest, _fault(path, filesystem, manifest.files)
    except OSError as error:
        return manifest, f"it cannot be read ({error})"


def _fault(path: str, filesystem: fs.FileSystem, digests: dict[str, str]) -> str:
    # Only what was found is opened: a name in a manifest may lead out of the checkpoint.
    found = names_in(path, filesystem)
    for name in digests:
        if name not in found or not is_file(f"{path}/{name}", filesystem):
            return f"{_shown(name)} is missing"
    for name in sorted(found - digests.keys() - {_TUNE_METADATA}):
        return f"{_shown(name)} is not in its {MANIFEST}: move it elsewhere if it is yours"
    for name, expected in digests.items():
        with filesystem.open_input_stream(f"{path}/{name}") as stream:
            if digest(stream) != expected:
                return f"{_shown(name)} has changed since it was written (another SHA-256)"
    return ""


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def names_in(path: str, filesystem: fs.FileSystem) -> set[str]:
    """What lies in a checkpoint, if there is one; its manifest and directories aside."""
    # pyarrow would follow links, in circles too.
    if isinstance(filesystem, fs.LocalFileSystem):
        return {file.relative_to(path).as_posix() for file in files_in(Path(path))}
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    files = (PurePosixPath(info.path) for info in found if info.type != fs.FileType.Directory)
    return {file.relative_to(path).as_posix() for file in files} - {MANIFEST}


def intact_beside(path: str, filesystem: fs.FileSystem) -> str | None:
    """The intact checkpoint beside this one, the last by name."""
    here = PurePosixPath(path)
    for other in reversed(_within(str(here.parent), filesystem)):
        is_one = other != str(here) and is_file(f"{other}/{MANIFEST}", filesystem)
        if is_one and not compare(other, filesystem)[1]:
            return other
    return None


def last_intact(path: str, filesystem: fs.FileSystem) -> str | None:
    """The intact checkpoint that was written last, of the run or the runs whose directory `path` is."""
    found = [it for it in checkpoints_in(path, filesystem) if is_file(f"{it}/{MANIFEST}", filesystem)]
    found.sort(key=lambda it: filesystem.get_file_info(f"{it}/{MANIFEST}").mtime_ns or 0, reverse=True)
    return next((it for it in found if not compare(it, filesystem)[1]), None)


def checkpoints_in(path: str, filesystem: fs.FileSystem) -> list[str]:
    """Those of the run, or of the runs, whose directory `path` is."""
    if filesystem.get_file_info(path).type != fs.FileType.Directory:
        return []
    # A run's directory lies in its experiment's.
    runs = [path, *(one for one in _within(path, filesystem) if not is_file(one, filesystem))]
    return sorted(
        one
        for run in runs
        for one in _within(run, filesystem)
        if is_file(f"{one}/{Algorithm.METADATA_FILE_NAME}", filesystem)
    )


def _within(path: str, filesystem: fs.FileSystem) -> list[str]:
    """What lies directly in a directory, by name."""
    if isinstance(filesystem, fs.LocalFileSystem):
        return sorted(map(str, Path(path).iterdir())) if Path(path).is_dir() else []
    return sorted(i.path for i in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)))


def is_file(path: str, filesystem: fs.FileSystem) -> bool:
    try:
        return filesystem.get_file_info(path).type == fs.FileType.File
    except ValueError:  # pyarrow's, of a name that is no UTF-8
        return False
