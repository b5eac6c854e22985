"""`--resume` continues what is unfinished, and says so where nothing is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rllib_haml.cli.app import rllib
from rllib_haml.cli.resume import can_resume


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


def test_nothing_to_resume_is_an_error_before_ray_starts(tmp_path: Path):
    arguments = ["train", "--run", "PPO", "--env", "CartPole-v1", "--resume", "--storage-path"]
    done = CliRunner().invoke(rllib, [*arguments, str(tmp_path)])
    assert done.exit_code == 2
    assert "nothing to resume" in done.output
    assert "Start one without --resume" in done.output
