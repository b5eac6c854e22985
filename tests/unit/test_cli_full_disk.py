"""A run whose storage takes no more ends with what is intact and what to type, not with `Aborted!`."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_cli_resume import CHECKPOINT, FRESH, an_experiment, note

from rllib_haml.cli import run

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def ended_by(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the run's end raise."""

    def end(error: Exception) -> None:
        def fit() -> None:
            raise error

        monkeypatch.setattr(run, "_new_tuner", lambda *_: SimpleNamespace(fit=fit))

    return end


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    "error, reason",
    [
        (FULL, " ([Errno 28] No space left on device)"),
        (EOFError("Ran out of input"), ""),
        (pickle.UnpicklingError("pickle data was truncated"), ""),
    ],
)
def test_storage_that_took_no_more_is_named_with_a_way_on(
    error: Exception,
    reason: str,
    scheme: str,
    tmp_path: Path,
    ended_by: Any,
    capsys: pytest.CaptureFixture[str],
):
    checkpoint = tmp_path / "team" / "trial" / "checkpoint_1"
    shutil.copytree(CHECKPOINT, checkpoint)
    note(tmp_path / "team", "ERROR", made=(checkpoint,))
    ended_by(error)
    assert run._run(an_experiment(tmp_path, storage_path=f"{scheme}{tmp_path}"), FRESH) == 1
    said = capsys.readouterr().err
    assert (
        f"team: {scheme}{tmp_path}/team could not be written to its end{reason}: is the disk full (" in said
    )
    assert f"The last intact checkpoint is {scheme}{checkpoint}." in said
    assert f"Make room; the same command with --resume continues from {scheme}{checkpoint}." in said


def test_a_note_that_was_cut_off_names_the_checkpoint_to_restore(
    tmp_path: Path, ended_by: Any, capsys: pytest.CaptureFixture[str]
):
    checkpoint = tmp_path / "team" / "trial" / "checkpoint_1"
    shutil.copytree(CHECKPOINT, checkpoint)
    note(tmp_path / "team", "ERROR")
    (tmp_path / "team" / "experiment_state-1.json").write_text('{"trial_data": [["')
    ended_by(FULL)
    assert run._run(an_experiment(tmp_path), FRESH) == 1
    assert f"Start again: --restore {checkpoint}, without --resume" in capsys.readouterr().err


def test_nothing_that_is_left_is_said_too(tmp_path: Path, ended_by: Any, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "team").mkdir()
    ended_by(FULL)
    assert run._run(an_experiment(tmp_path), FRESH) == 1
    assert "no intact checkpoint. Make room; the same command begins again." in capsys.readouterr().err


@pytest.mark.parametrize("error", [ConnectionError("the cluster is gone"), TimeoutError("no answer")])
def test_control_rays_own_errors_are_not_the_storages(error: Exception, tmp_path: Path, ended_by: Any):
    ended_by(error)
    with pytest.raises(type(error)):
        run._run(an_experiment(tmp_path), FRESH)
