"""`--resume` continues what is unfinished, and says so where nothing is."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from ray.rllib.algorithms.ppo import PPO
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from ray.tune.trainable.metadata import _TrainingRunMetadata

from rllib_haml.checkpoints.manifest import MANIFEST
from rllib_haml.cli import run
from rllib_haml.cli.app import rllib
from rllib_haml.cli.options import TrainOptions
from rllib_haml.cli.resume import earlier_run
from rllib_haml.cli.storage import check_storage
from rllib_haml.config.errors import ConfigError
from rllib_haml.config.experiment import Experiment

CHECKPOINT = Path(__file__).parents[1] / "data" / "checkpoint" / "happo_climbing"


def note(directory: Path, *statuses: str, made: tuple[Path | None, ...] = (), **state: Any) -> None:
    """Writes what Tune leaves of an experiment: per trial its status, its last checkpoint, `state`."""
    directory.mkdir(exist_ok=True)
    (directory / "tuner.pkl").touch()
    made = made or (None,) * len(statuses)
    trials = [
        [json.dumps({"status": status} | state), measured(checkpoint)]
        for status, checkpoint in zip(statuses, made, strict=True)
    ]
    (directory / "experiment_state-1.json").write_text(json.dumps({"trial_data": trials}))


def measured(checkpoint: Path | None) -> str:
    """What Tune notes of a trial that has made a checkpoint, or none yet."""
    metadata = _TrainingRunMetadata()
    manager: Any = _CheckpointManager(None)
    metadata.checkpoint_manager = manager
    if checkpoint:
        checkpoint.mkdir(parents=True, exist_ok=True)
        manager.register_checkpoint(_TrainingResult(Checkpoint(str(checkpoint)), {}))
    return metadata.get_json_state()


def an_experiment(tmp_path: Path, name: str = "team", num_trials: int = 1, **more: Any) -> Any:
    given = {"storage_path": str(tmp_path), "num_trials": num_trials, "time_budget_s": None, "config": None}
    return Experiment(name, "PPO", PPO, param_space=None, **given | more)  # pyright: ignore


NOTHING_SAID = dict.fromkeys(field.name for field in fields(TrainOptions)) | {"verbosity": 0}
RESUMING: Any = TrainOptions(**NOTHING_SAID | {"resume": True})
SUPERVISED: Any = TrainOptions(**NOTHING_SAID | {"auto_resume": True})
FRESH: Any = TrainOptions(**NOTHING_SAID)


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    "statuses, num_trials, ended",
    [
        (["TERMINATED"], 1, True),
        (["RUNNING"], 1, False),
        (["TERMINATED", "ERROR"], 2, False),
        # The other trial of the search was never started.
        (["TERMINATED"], 2, False),
    ],
)
def test_what_is_left_to_do(statuses: list[str], num_trials: int, ended: bool, scheme: str, tmp_path: Path):
    note(tmp_path, *statuses)
    found = earlier_run(f"{scheme}{tmp_path}")
    assert found.begun
    assert found.has_ended(num_trials) is ended


def test_what_never_began_has_not_ended(tmp_path: Path):
    for _ in range(2):
        found = earlier_run(str(tmp_path))
        assert not found.begun
        assert not found.has_ended(1)
        (tmp_path / "tuner.pkl").touch()


@pytest.mark.parametrize("torn", ["", '{"trial_data": [["{', "[]", '{"trial_data": [["{}", "{}"]]}'])
def test_a_torn_note_is_an_error_that_names_the_last_intact_checkpoint(torn: str, tmp_path: Path):
    note(tmp_path, "RUNNING")
    (tmp_path / "experiment_state-2.json").write_text(torn)
    for number in (1, 2, 3):
        shutil.copytree(CHECKPOINT, tmp_path / "trial" / f"checkpoint_{number}")
    manifest = tmp_path / "trial" / "checkpoint_3" / MANIFEST
    manifest.write_text("{}")
    os.utime(tmp_path / "trial" / "checkpoint_1" / MANIFEST, (0, 0))
    with pytest.raises(ConfigError) as caught:
        earlier_run(str(tmp_path))
    assert "experiment_state-2.json cannot be read" in str(caught.value)
    assert f"--restore {tmp_path}/trial/checkpoint_2," in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        earlier_run(f"file://{tmp_path}")
    assert f"file://{tmp_path}/experiment_state-2.json cannot be read" in str(caught.value)
    assert f"copy file://{tmp_path}/trial/checkpoint_2 to a directory" in str(caught.value)


WAYS_ON = [
    (["RUNNING"], [3], "continues from {}/trial/checkpoint_3"),
    (["RUNNING"], [None], "begins again: no checkpoint was made yet"),
    (["ERROR", "PENDING"], [None, None], "begins again: no checkpoint was made yet"),
    (["TERMINATED", "ERROR"], [1, 2], "continues from {}/trial/checkpoint_2"),
    (["ERROR", "RUNNING"], [1, 2], "continues 2 of 2 trials from their last checkpoints"),
    (
        ["ERROR", "RUNNING", "PENDING"],
        [1, 2, None],
        "continues 2 of 3 trials from their last checkpoints; the others begin again, they have none yet",
    ),
    (["TERMINATED"], [1], "begins the trials that are left"),
]


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("statuses, made, words", WAYS_ON)
def test_where_resuming_goes_on(
    statuses: list[str], made: list[int | None], words: str, scheme: str, tmp_path: Path
):
    paths = [tmp_path / "trial" / f"checkpoint_{n}" if n else None for n in made]
    note(tmp_path, *statuses, made=tuple(paths))
    path = f"{scheme}{tmp_path}"
    assert earlier_run(path).way_on() == words.format(path)


def test_a_restored_run_without_a_checkpoint_of_its_own_goes_on_from_the_one_given(tmp_path: Path):
    note(tmp_path, "RUNNING", restore_path="/given/checkpoint_9")
    assert earlier_run(str(tmp_path)).way_on() == "continues from /given/checkpoint_9"


def test_resuming_a_file_does_not_train_again_what_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    note(tmp_path / "team", "TERMINATED")
    monkeypatch.setattr(run, "_new_tuner", lambda *_: pytest.fail("trains again"))
    assert run._run(an_experiment(tmp_path), RESUMING) == 0


def test_a_supervised_command_begins_continues_and_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    first, second = an_experiment(tmp_path, "first"), an_experiment(tmp_path, "second")
    begun = []
    monkeypatch.setattr(run, "start_ray", lambda options: begun.append("ray"))
    monkeypatch.setattr(run, "_warn_of_lost_work", lambda experiments: None)
    monkeypatch.setattr(run, "_check_resources", lambda *_: None)
    monkeypatch.setattr(run, "_new_tuner", lambda experiment, options: begun.append("new") or tuner)
    monkeypatch.setattr(run, "_interrupted_tuner", lambda *_: begun.append("interrupted") or tuner)
    monkeypatch.setattr(run, "report", lambda *_: None)
    tuner = SimpleNamespace(fit=lambda: SimpleNamespace(errors=[]))
    supervised: Any = SUPERVISED

    assert run.run_experiments([first, second], supervised) == run.INTERRUPTED
    assert begun == ["ray", "new"]
    assert "first: interrupted. The same command begins" in capsys.readouterr().out
    note(tmp_path / "first", "TERMINATED")
    note(tmp_path / "second", "RUNNING")
    assert run.run_experiments([first, second], supervised) == run.INTERRUPTED
    assert begun[2:] == ["ray", "interrupted"]
    note(tmp_path / "second", "TERMINATED")
    assert run.run_experiments([first, second], supervised) == 0
    assert begun[4:] == [], "all has ended: no Ray is needed"


def test_both_ways_to_resume_are_an_error(tmp_path: Path):
    arguments = ["train", "--run", "PPO", "--env", "CartPole-v1", "--resume", "--auto-resume"]
    done = CliRunner().invoke(rllib, [*arguments, "--storage-path", str(tmp_path)])
    assert done.exit_code == 2
    assert "--resume and --auto-resume: give one of them" in done.output


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets a run leave trials of the statuses given."""

    def leave(*statuses: str) -> None:
        tuner = SimpleNamespace(fit=lambda: (note(tmp_path / "team", *statuses), FINE)[1])
        monkeypatch.setattr(run, "_new_tuner", lambda *_: tuner)
        monkeypatch.setattr(run, "_interrupted_tuner", lambda *_: tuner)
        monkeypatch.setattr(run, "report", lambda *_: None)

    FINE = SimpleNamespace(errors=[])
    return leave


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize(
    "statuses, code", [(["TERMINATED"] * 2, 0), (["TERMINATED", "RUNNING"], 130), (["TERMINATED"], 130)]
)
def test_a_run_was_interrupted_if_trials_are_left(
    statuses: list[str], code: int, scheme: str, tmp_path: Path, training: Any
):
    training(*statuses)
    team = an_experiment(tmp_path, num_trials=2, storage_path=f"{scheme}{tmp_path}")
    assert run._run(team, FRESH) == code


def test_a_search_that_its_time_ended_was_not_interrupted(tmp_path: Path, training: Any):
    training("TERMINATED")
    assert run._run(an_experiment(tmp_path, num_trials=9, time_budget_s=60.0), FRESH) == 0


def test_a_resumed_run_takes_no_further_samples_and_says_so(tmp_path: Path, training: Any):
    note(tmp_path / "team", "TERMINATED")
    training("TERMINATED")
    with pytest.raises(ConfigError, match="ended with 1 trials, and 2 are asked for now"):
        run._run(an_experiment(tmp_path, num_trials=2), RESUMING)
    training("TERMINATED", "TERMINATED")
    assert run._run(an_experiment(tmp_path, num_trials=2), RESUMING) == 0


def test_storage_that_cannot_be_written_to_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    # /proc is a directory in which not even root can make a file.
    for place in (f"{tmp_path}/file", f"file://{tmp_path}/file", "nowhere://bucket/runs", "/proc"):
        with pytest.raises(ConfigError, match="cannot be written to"):
            check_storage([an_experiment(tmp_path, storage_path=place)])
    check_storage([an_experiment(tmp_path, storage_path=f"file://{tmp_path}/new/runs")])
    assert (tmp_path / "new" / "runs").is_dir()
    assert list((tmp_path / "new" / "runs").iterdir()) == [], "what was written to try it is gone"


@pytest.mark.parametrize(
    "codes, begun, expected", [([1, 0], 2, 1), ([0, 130, 0], 2, 130), ([130, 0], 1, 130), ([0, 0], 2, 0)]
)
def test_an_interrupt_ends_the_whole_file_and_a_failure_does_not(
    codes: list[int], begun: int, expected: int, monkeypatch: pytest.MonkeyPatch
):
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
    experiment: Any = SimpleNamespace(
        name="long", max_failures=failures, checkpoints={"checkpoint_frequency": every}
    )
    run._warn_of_lost_work([experiment])
    assert ("long: max_failures" in caplog.text and "checkpoint_freq" in caplog.text) == warns
