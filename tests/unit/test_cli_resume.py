"""`--resume` continues what is unfinished, and says so where nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from rllib_haml.cli.app import rllib
from rllib_haml.cli.resume import can_resume, has_ended


@pytest.mark.parametrize(
    "statuses, num_trials, expected",
    [
        (["TERMINATED"], 1, False),
        (["RUNNING"], 1, True),
        (["TERMINATED", "ERROR"], 2, True),
        # The other trial of the search was never started.
        (["TERMINATED"], 2, True),
    ],
)
def test_what_is_left_to_do(statuses: list[str], num_trials: int, expected: bool, tmp_path: Path):
    (tmp_path / "tuner.pkl").touch()
    trials = [[json.dumps({"status": status}), "{}"] for status in statuses]
    (tmp_path / "experiment_state-1.json").write_text(json.dumps({"trial_data": trials}))
    assert can_resume(str(tmp_path), num_trials) is expected
    assert has_ended(str(tmp_path), num_trials) is not expected


def test_what_never_began_has_not_ended(tmp_path: Path):
    assert not has_ended(str(tmp_path), 1)
    (tmp_path / "tuner.pkl").touch()
    assert not has_ended(str(tmp_path), 1)


def test_resuming_a_file_does_not_train_again_what_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from rllib_haml.cli import run

    experiment: Any = SimpleNamespace(name="done", storage_path=str(tmp_path), num_trials=1)
    options: Any = SimpleNamespace(resume=True)
    monkeypatch.setattr(run, "has_ended", lambda path, num_trials: path == f"{tmp_path}/done")
    monkeypatch.setattr(run, "_new_tuner", lambda *_: pytest.fail("trains again"))
    assert run._run(experiment, options) == 0


@pytest.mark.parametrize(
    "codes, begun, expected", [([1, 0], 2, 1), ([0, 130, 0], 2, 130), ([130, 0], 1, 130), ([0, 0], 2, 0)]
)
def test_an_interrupt_ends_the_whole_file_and_a_failure_does_not(
    codes: list[int], begun: int, expected: int, monkeypatch: pytest.MonkeyPatch
):
    from rllib_haml.cli import run

    left = list(codes)
    monkeypatch.setattr(run, "_run", lambda *_: left.pop(0))
    experiments: Any = [None] * len(codes)
    options: Any = None
    assert run._run_all(experiments, options) == expected
    assert len(codes) - len(left) == begun


def test_nothing_to_resume_is_an_error_before_ray_starts(tmp_path: Path):
    arguments = ["train", "--run", "PPO", "--env", "CartPole-v1", "--resume", "--storage-path"]
    done = CliRunner().invoke(rllib, [*arguments, str(tmp_path)])
    assert done.exit_code == 2
    assert "nothing to resume" in done.output
    assert "Start one without --resume" in done.output


@pytest.mark.parametrize(
    "failures, every, warns", [(3, 0, True), (-1, 0, True), (3, 5, False), (0, 0, False)]
)
def test_restarts_without_checkpoints_are_warned_of(
    failures: int, every: int, warns: bool, caplog: pytest.LogCaptureFixture
):
    from rllib_haml.cli import run

    experiment: Any = SimpleNamespace(
        name="long", max_failures=failures, checkpoints={"checkpoint_frequency": every}
    )
    run._warn_of_lost_work([experiment])
    assert ("long: max_failures" in caplog.text and "checkpoint_freq" in caplog.text) == warns
