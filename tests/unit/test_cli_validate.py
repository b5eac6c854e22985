"""`rllib validate` plays a little: an environment that breaks when it runs is a problem of the file."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rllib_haml.cli.app import rllib
from rllib_haml.cli.first_iteration import Plan, first_iteration

validate: Any = import_module("rllib_haml.cli.validate")


def validated(env: str, tmp_path: Path, config: str = "{}") -> tuple[int, str]:
    file = tmp_path / "x.yaml"
    file.write_text(f"team:\n  run: HAPPO\n  env: {env}\n  config: {config}\n")
    result = CliRunner().invoke(rllib, ["validate", str(file)])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(
    "env, words",
    [
        ("BreaksAtReset", ["in reset()", "OSError: no map of this name"]),
        ("BreaksLater", ["in step()", "step 7 of its episode", "the simulator lost its licence"]),
        ("PaysUnequally", ["step 1", "{'ann': 1.0, 'bob': 2.0}", "set `team_reward` to `mean` or `sum`"]),
    ],
)
def test_what_breaks_in_the_first_steps_is_told_with_its_line(env: str, words: list[str], tmp_path: Path):
    code, output = validated(f"malformed_envs:{env}", tmp_path)
    assert code == 2, output
    assert "x.yaml:3: team.env: " in output
    assert "OK (" not in output
    for word in words:
        assert word in output


@pytest.mark.parametrize("env", ["Sound", "Masks"])
def test_control_sound_environments_masks_respected(env: str, tmp_path: Path):
    code, output = validated(f"malformed_envs:{env}", tmp_path)
    assert code == 0, output
    assert "OK (HAPPO" in output


def test_control_unequal_rewards_may_be_meant(tmp_path: Path):
    assert validated("malformed_envs:PaysUnequally", tmp_path, "{team_reward: sum}")[0] == 0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "SILENCE_S", 4.0)


def test_slow_environments_are_not_waited_for_and_that_is_said(tmp_path: Path, impatient: None):
    began = time.monotonic()
    code, output = validated("malformed_envs:Slow", tmp_path)
    assert code == 0
    assert "not tried: its environment took no step within 4 s" in output
    assert time.monotonic() - began < 55


@pytest.mark.parametrize(
    "env, words",
    [
        ("OnePerProcess", "RuntimeError: the simulator runs already"),
        ("HangsWithTwo", "nothing came back within 4 s"),
        ("CrashesWithTwo", "the process ended with signal 11 (SIGSEGV)"),
        ("SharesItsPlaces", "what one shows depends on what another does"),
    ],
)
def test_a_simulation_of_which_a_process_bears_one_is_named(
    env: str, words: str, tmp_path: Path, impatient: None
):
    code, output = validated(f"malformed_envs:{env}", tmp_path)
    assert code == 2, output
    assert "x.yaml:3: team.env: it does not bear 8 copies in one process" in output
    assert words in output
    assert "`num_envs_per_env_runner: 1`" in output
    assert "OK (" not in output


@pytest.mark.parametrize("env", ["OnePerProcess", "HangsWithTwo", "SharesItsPlaces"])
def test_control_one_copy_of_it_trains(env: str, tmp_path: Path):
    code, output = validated(f"malformed_envs:{env}", tmp_path, "{num_envs_per_env_runner: 1}")
    assert code == 0, output
    assert "1 copy of its environment in one process: " in output


def test_the_copies_of_evaluation_count_where_they_stand_beside(tmp_path: Path):
    beside = "num_envs_per_env_runner: 1, evaluation_interval: 1"
    code, output = validated("malformed_envs:OnePerProcess", tmp_path, f"{{{beside}}}")
    assert code == 2, output
    assert "a copy for training and one for evaluation in one process" in output
    assert "`evaluation_num_env_runners: 1`" in output
    apart = f"{{{beside}, evaluation_num_env_runners: 1}}"
    assert validated("malformed_envs:OnePerProcess", tmp_path, apart)[0] == 0


@pytest.mark.parametrize("env", ["OwnPlaces", "DrawsFromTheGlobalGenerator"])
def test_control_copies_that_share_nothing_that_matters(env: str, tmp_path: Path):
    code, output = validated(f"malformed_envs:{env}", tmp_path)
    assert code == 0, output
    assert "8 copies of its environment in one process: " in output


@pytest.mark.parametrize("env, code", [("Hangs", 0), ("HangsWhenMade", 2)])
def test_what_hangs_in_c_is_ended_and_said(env: str, code: int, tmp_path: Path, impatient: None):
    found, output = validated(f"malformed_envs:{env}", tmp_path)
    assert found == code, output
    assert "within 4 s. Stuck" in output if code == 0 else "nothing came back within 8 s" in output


def test_a_long_first_iteration_is_told_with_what_to_set(tmp_path: Path):
    config = "{num_envs_per_env_runner: 2, train_batch_size_per_learner: 4000}"
    code, output = validated("malformed_envs:Creeps", tmp_path, config)
    assert code == 0, output
    rate = float(re.findall(r"2 copies .* process: ([\d.]+) steps/s", output)[0])
    assert 1 < rate <= 20
    for words in (
        "samples 4,000 steps in about",
        "That is long",
        "`num_env_runners: 2`",
    ):
        assert words in output
    size = int(re.findall(r"`train_batch_size_per_learner: (\d+)`", output)[0])
    assert size / rate == pytest.approx(30, rel=0.1)


def test_copies_that_are_slow_to_make_and_no_checkpoints_are_told_too():
    plan = Plan(copies=8, processes=1, batch=4000, learners=1, makes_checkpoints=False)
    lines = " ".join(first_iteration(plan, steps_per_s=1000.0, start_s=90.0))
    assert "in about 1m34s" in lines
    assert "`num_envs_per_env_runner: 1` begins sooner" in lines
    assert "`checkpoint_freq: 0` left out" in lines
    assert "train_batch_size" not in lines
    assert len(first_iteration(replace(plan, makes_checkpoints=True), 1000.0, 9.0)) == 1


def test_control_a_short_one_is_told_without(tmp_path: Path):
    _, output = validated("malformed_envs:Sound", tmp_path)
    assert "8 copies of its environment in one process" in output
    assert "That is long" not in output


def test_a_mistake_elsewhere_does_not_hide_one_in_env_config(tmp_path: Path):
    code, output = validated("matrix_game", tmp_path, "{gama: 1, env_config: {game: climb}}")
    assert code == 2
    assert "unknown key of HAPPO. Did you mean `gamma`?" in output
    assert output.count("Did you mean 'climbing'?") == 1


def test_control_a_mistake_in_env_config_is_told_once(tmp_path: Path):
    code, output = validated("matrix_game", tmp_path, "{env_config: {game: climb}}")
    assert code == 2
    assert output.count("Did you mean 'climbing'?") == 1
