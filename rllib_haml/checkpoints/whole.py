"""Where RLlib writes and reads an algorithm's checkpoints, with this package's care."""

from __future__ import annotations

import logging
import pickle
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pyarrow import fs
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.annotations import override
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint

from rllib_haml.checkpoints.intact import intact_beside, is_file
from rllib_haml.checkpoints.manifest import MANIFEST, Manifest
from rllib_haml.checkpoints.read import CheckpointError, class_of, refuse_foreign, verify
from rllib_haml.checkpoints.write import upload_whole, write_whole

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("rllib_haml")


class WholeCheckpoints(Algorithm):
    """An algorithm whose checkpoints are whole or not there, and are checked before they are loaded."""

    # A `TeamConfig`.
    config: Any

    @override(Algorithm)
    def save_to_path(
        self, path: Any = None, *, state: Any = None, filesystem: Any = None, use_msgpack: bool = False
    ) -> str:
        """Writes a checkpoint; see `write_whole`.

        Args:
            path: A directory, or a URI that pyarrow knows; None makes a temporary directory.
            state, filesystem, use_msgpack: As RLlib's.

        Raises:
            FileExistsError: At `path` there are files that are no checkpoint's.
            OSError: It could not be written; what was there is as it was.
        """
        filesystem, place = _located(tempfile.mkdtemp() if path is None else path, filesystem)

        def write(directory: Path) -> None:
            Algorithm.save_to_path(self, str(directory), state=state, use_msgpack=use_msgpack)
            if self.config.num_learners:
                _check_learners_part(directory)

        manifest = Manifest.of(type(self).__name__, self.config.team)
        if isinstance(filesystem, fs.LocalFileSystem):
            write_whole(Path(place), manifest, write)
        else:
            upload_whole(place, filesystem, manifest, write)
        return place

    @override(Algorithm)
    def restore_from_path(
        self, path: Any, *args: Any, component: str | None = None, filesystem: Any = None, **kwargs: Any
    ) -> None:
        """Loads a checkpoint, or with `component` the part of one that lies at `path`.

        A part is verified with the checkpoint that it lies in; one that was saved alone has nothing to be
        verified by, and is unpickled as it is.

        Raises:
            FileNotFoundError: There is none.
            CheckpointError: It is damaged, or another algorithm's or team's; nothing of it was loaded. Or it
                is of other networks, or incomplete; then parts of it may have been.
        """
        if component is not None:
            _verify_around(path, filesystem)
            self._before_restoring()
            super().restore_from_path(path, *args, component=component, filesystem=filesystem, **kwargs)
            return
        with _verified(path, filesystem) as (directory, manifest):
            refuse_foreign(str(path), manifest, type(self), self.config.team)
            self._before_restoring()
            with _networks_named(path):
                super().restore_from_path(directory, *args, **kwargs)

    def _before_restoring(self) -> None:
        """Called once a checkpoint is known to be whole and this algorithm's, before it is loaded."""

    @override(Algorithm)
    def restore(self, checkpoint_path: Any) -> None:
        """Goes on from the checkpoint that Tune has noted, else from the last intact one beside it.

        Tune notes checkpoints about once a second. A run that was killed in between may have deleted the
        noted one (`num_to_keep`), or have been writing another in its place.
        """
        super().restore(_intact(checkpoint_path))

    @classmethod
    @override(Algorithm)
    def from_checkpoint(cls, path: Any, filesystem: Any = None, **kwargs: Any) -> Self:
        """Builds the algorithm that a checkpoint was made by, and loads it; see `restore_from_path`."""
        if isinstance(path, Checkpoint):
            path, filesystem = path.to_directory(), None
        with _verified(path, filesystem) as (directory, _):
            made_by = class_of(directory, fs.LocalFileSystem())
            if not issubclass(made_by, cls):
                raise CheckpointError(
                    f"The checkpoint {path} is {made_by.__name__}'s: load it with "
                    f"{made_by.__name__}.from_checkpoint, not {cls.__name__}'s."
                )
            made: Any = super().from_checkpoint(directory, **kwargs)
            return made


def _intact(noted: Any) -> Any:
    # Without metrics it is one that a user named, in whose place nothing else may be loaded.
    if not isinstance(noted, _TrainingResult) or not noted.metrics:
        return noted
    checkpoint: Any = noted.checkpoint
    filesystem, path = checkpoint.filesystem, checkpoint.path
    try:
        verify(path, filesystem)
    except (FileNotFoundError, CheckpointError):
        other = intact_beside(path, filesystem)
        if other is None:
            raise
        logger.warning("The checkpoint %s is gone or damaged; the run goes on from %s.", path, other)
        return _TrainingResult(Checkpoint(other, filesystem), noted.metrics)
    return noted


def _located(path: Any, filesystem: Any) -> tuple[Any, str]:
    """The file system, and the path there."""
    if filesystem is not None:
        return filesystem, str(path)
    if "://" in str(path):
        return fs.FileSystem.from_uri(str(path))
    return fs.LocalFileSystem(), Path(path).expanduser().absolute().as_posix()


def _verify_around(path: Any, filesystem: Any) -> None:
    """Verifies the checkpoint that a part lies in, if it does."""
    filesystem, place = _located(path, filesystem)
    for around in PurePosixPath(place, MANIFEST).parents[:-1]:
        if is_file(f"{around}/{MANIFEST}", filesystem):
            verify(str(around), filesystem)
            return


@contextmanager
def _verified(path: Any, filesystem: Any) -> Iterator[tuple[str, Manifest]]:
    """A checkpoint's directory on this machine, and its manifest, once it is known to be whole."""
    filesystem, place = _located(path, filesystem)
    manifest = verify(place, filesystem)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield place, manifest
        return
    with tempfile.TemporaryDirectory() as directory:
        fs.copy_files(place, directory, source_filesystem=filesystem)
        yield directory, manifest


@contextmanager
def _networks_named(path: Any) -> Iterator[None]:
    """Says of weights that do not fit what would, and of files that are not there that they are not."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(
            f"The checkpoint {path} lacks what its algorithm needs ({error}); parts may be loaded."
        ) from error
    # RuntimeError is torch's, ValueError that of this package's networks.
    except (RuntimeError, ValueError) as error:
        unlike = re.search(r"(size mismatch for|Missing key|Unexpected key).*", str(error))
        if unlike is None:
            raise
        raise CheckpointError(
            f"The checkpoint {path} is of other networks ({unlike.group().rstrip('.')}): give the "
            f"model_config that it was made with, and build the algorithm anew, as parts may be loaded."
        ) from error


def _check_learners_part(directory: Path) -> None:
    """RLlib does not ask learners that run elsewhere whether they could write.

    Raises:
        OSError: The file that they write last is not there, or not to its end.
    """
    for state in Path(directory, "learner_group", "learner").glob("state.*"):
        try:
            if state.suffix == ".pkl":
                pickle.loads(state.read_bytes())
        except (EOFError, pickle.UnpicklingError):
            break
        return
    raise OSError(
        f"The learners did not write their part of the checkpoint {directory}: is the disk full, or not "
        f"writable where they run?"
    )
