"""Checkpoints that are whole or not there: written aside, brought to the disk, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from pyarrow import fs

from rllib_haml.checkpoints.intact import is_file, names_in
from rllib_haml.checkpoints.manifest import MANIFEST, Manifest, digest, files_in


def write_whole(path: Path, manifest: Manifest, write: Callable[[Path], None]) -> None:
    """Makes the directory `path` of what `write` puts into the directory that it is given.

    Until all of it is on the disk, nothing at `path` changes; a checkpoint there is replaced.

    Args:
        path: On this machine. Nothing, an empty directory, or an earlier checkpoint of this package.
        manifest: Without its files.

    Raises:
        FileExistsError: There is something else at `path`.
        OSError: As `write` raises it: a full disk, ...
    """
    path = path.resolve()
    _check_place(str(path), fs.LocalFileSystem())
    # Beside it: a rename needs the same file system. An earlier attempt may have been killed.
    aside, former = (path.with_name(f".{path.name}.{word}") for word in ("writing", "former"))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        write(aside)
        _seal(aside, manifest)
        if path.exists():
            shutil.copymode(path, aside)
            shutil.rmtree(former, ignore_errors=True)
            path.rename(former)
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        if former.exists() and not path.exists():
            former.rename(path)
        raise
    _sync(path.parent)
    shutil.rmtree(former, ignore_errors=True)


def upload_whole(
    path: str, filesystem: fs.FileSystem, manifest: Manifest, write: Callable[[Path], None]
) -> None:
    """The same on another file system, where nothing can be renamed: the manifest goes last.

    Raises:
        FileExistsError: There is something else at `path`.
        OSError: It could not be written to its end; what is there is then refused.
    """
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch, "checkpoint")
        write_whole(local, manifest, write)
        sealed = (local / MANIFEST).rename(Path(scratch, MANIFEST))
        made = Manifest.loads(sealed.read_bytes()).files.keys()
        former = names_in(path, filesystem)
        _check_place(path, filesystem, made)
        filesystem.create_dir(path, recursive=True)
        if filesystem.get_file_info(f"{path}/{MANIFEST}").type != fs.FileType.NotFound:
            filesystem.delete_file(f"{path}/{MANIFEST}")
        fs.copy_files(str(local), path, destination_filesystem=filesystem)
        for name in former - made:
            filesystem.delete_file(f"{path}/{name}")
        with filesystem.open_output_stream(f"{path}/{MANIFEST}") as stream:
            stream.write(sealed.read_bytes())


def _check_place(path: str, filesystem: fs.FileSystem, replaced: Collection[str] = ()) -> None:
    """Nothing that is not an earlier checkpoint's may be lost.

    Args:
        replaced: Names of files that an upload which was cut off may have left.
    """
    if is_file(path, filesystem):
        raise FileExistsError(f"{path} is a file: name a directory that is new or empty.")
    strangers = sorted(names_in(path, filesystem) - _listed(path, filesystem) - set(replaced))
    if strangers:
        raise FileExistsError(
            f"{path} holds files that are no checkpoint's, such as {strangers[0]}: name a directory that is "
            f"new or empty, or an earlier checkpoint to replace."
        )


def _listed(path: str, filesystem: fs.FileSystem) -> set[str]:
    """Files of the checkpoint that is there, if there is one whose manifest can be read."""
    if not is_file(f"{path}/{MANIFEST}", filesystem):
        return set()
    with filesystem.open_input_stream(f"{path}/{MANIFEST}") as stream:
        try:
            return set(Manifest.loads(stream.read()).files)
        except ValueError:
            return set()


def _seal(directory: Path, manifest: Manifest) -> None:
    """Brings every file to the disk, and writes the manifest last."""
    digests = {}
    for file in files_in(directory):
        with file.open("rb") as stream:
            digests[file.relative_to(directory).as_posix()] = digest(stream)
            os.fsync(stream.fileno())
    with (directory / MANIFEST).open("w") as stream:
        stream.write(replace(manifest, files=digests).dumps())
        stream.flush()
        os.fsync(stream.fileno())
    for folder in [directory, *(p for p in directory.rglob("*") if p.is_dir())]:
        _sync(folder)


def _sync(directory: Path) -> None:
    """Brings a directory's entries to the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
