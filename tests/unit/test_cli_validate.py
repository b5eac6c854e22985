"""`rllib validate` plays a little: an environment that breaks when it runs is a problem of the file."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from rllib_haml.cli import tryout
from rllib_haml.cli.app import rllib


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


def test_slow_environments_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tryout, "LIMIT_S", 0.5)
    began = time.monotonic()
    assert validated("malformed_envs:Slow", tmp_path)[0] == 0
    assert time.monotonic() - began < 50


def test_a_mistake_elsewhere_does_not_hide_one_in_env_config(tmp_path: Path):
    code, output = validated("matrix_game", tmp_path, "{gama: 1, env_config: {game: climb}}")
    assert code == 2
    assert "unknown key of HAPPO. Did you mean `gamma`?" in output
    assert output.count("Did you mean 'climbing'?") == 1


def test_control_a_mistake_in_env_config_is_told_once(tmp_path: Path):
    code, output = validated("matrix_game", tmp_path, "{env_config: {game: climb}}")
    assert code == 2
    assert output.count("Did you mean 'climbing'?") == 1
