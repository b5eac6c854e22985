"""Where an experiment's results lie: on this machine, or below a URI."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from uuid import uuid4

from pyarrow import fs

from rllib_haml.config.errors import ConfigError, Problem
from rllib_haml.config.experiment import Experiment


def is_uri(path: str) -> bool:
    """Whether `path` is `s3://bucket/...` or the like."""
    return "://" in path


def storage_root(given: str | None) -> str:
    """The directory, or the URI, that all experiments of one storage lie in."""
    root = given or "~/ray_results"
    return root.rstrip("/") if is_uri(root) else str(Path(root).expanduser().resolve())


def experiment_path(experiment: Experiment) -> str:
    """The directory, or the URI, of an experiment's results."""
    return f"{storage_root(experiment.storage_path)}/{experiment.directory or experiment.name}"


def within(experiment: str, checkpoint: str) -> str:
    """The path of a checkpoint in the experiment's directory or URI; Tune's own has lost the scheme."""
    if not is_uri(experiment):
        return checkpoint
    return "/".join([experiment, *PurePosixPath(checkpoint).parts[-2:]])


def _write_and_remove(file: str, filesystem: fs.FileSystem) -> None:
    with filesystem.open_output_stream(file) as stream:
        stream.write(b"x")
    filesystem.delete_file(file)


def check_storage(experiments: list[Experiment]) -> None:
    """Makes the experiments' storage where it is not there yet.

    Raises:
        ConfigError: It cannot be written to.
    """
    for experiment in experiments:
        path = storage_root(experiment.storage_path)
        try:
            filesystem, place = fs.FileSystem.from_uri(path)
            filesystem.create_dir(place)
            _write_and_remove(f"{place}/.rllib_writes_here_{uuid4().hex}", filesystem)
        # pyarrow's error for a scheme that it does not know is a ValueError.
        except (OSError, ValueError) as error:
            text = (
                f"{path} cannot be written to: {error}. Name a directory, or a URI such as s3://bucket/runs."
            )
            raise ConfigError([Problem("--storage-path", experiment.name, text)]) from error
