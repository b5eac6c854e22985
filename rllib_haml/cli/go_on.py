"""Which run a command goes on with, and with what that began; or why with none. All before Ray starts."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from rllib_haml.cli.directories import Run, last_runs
from rllib_haml.cli.options import TrainOptions, override
from rllib_haml.cli.storage import storage_root
from rllib_haml.config.document import Document
from rllib_haml.config.errors import ConfigError, Problem


def go_on(document: Document, options: TrainOptions) -> dict[str, str]:
    """Gives every experiment of `document` what its last run began with.

    Args:
        document: Experiments, the flags given now written over them.
        options: With `resume` or `auto_resume`.

    Returns:
        Experiment -> the directory of that run under its storage path.

    Raises:
        ConfigError: There is nothing to resume, or what is given now contradicts what the run began with.
    """
    storages = {
        name: storage_root(spec.get("storage_path") or spec.get("local_dir"))
        for name, spec in document.data.items()
    }
    runs = last_runs(storages, unfinished=options.resume)
    if options.resume:
        _check_resumable(runs, storages)
    for name, run in runs.items():
        if run.note and run.before.begun:
            _take_over(document, name, run, options)
    document.raise_problems()
    return {name: run.directory for name, run in runs.items()}


def _take_over(document: Document, name: str, run: Run, options: TrainOptions) -> None:
    assert run.note is not None
    if "run" not in document.data[name]:
        document.data[name] = copy.deepcopy(run.note.spec) | document.data[name]
    override(document, name, run.note.flags)
    override(document, name, options.flags())
    checkpoint = next((f"--restore {origin}, " for origin in run.before.origins if origin), "")
    for path, change in run.note.contradictions(document.data[name]):
        text = (
            f"{change}: a resumed run keeps what it began with. Leave the change out, or start a new run: "
            f"{checkpoint}without resuming."
        )
        document.error((name, *path), text)


def _check_resumable(runs: Mapping[str, Run], storages: Mapping[str, str]) -> None:
    if any(run.before.begun for run in runs.values()) and not all(run.ended for run in runs.values()):
        return
    raise ConfigError(
        [
            Problem("--resume", name, _nothing_to_resume(f"{storages[name]}/{run.directory}", run))
            for name, run in runs.items()
        ]
    )


def _nothing_to_resume(path: str, run: Run) -> str:
    if not run.before.begun:
        return (
            f"nothing to resume: no interrupted run in {path}. Start one without --resume, or give the "
            f"--storage-path and --experiment-name that it began with."
        )
    return (
        f"nothing to resume: the run in {path} has ended. To train on, start another from its checkpoint: "
        f"--restore CHECKPOINT, without --resume."
    )
