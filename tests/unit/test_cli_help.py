"""`rllib --help` answers at once, and teaches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# As the installed script does it: the package looks at the name that it was started under.
SCRIPT = "import sys; sys.argv[0] = 'rllib'; from rllib_haml.cli import main; main()"


def rllib(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=180
    )


def test_help_answers_within_a_second():
    """Of CPU time: other work on the machine counts little."""
    seconds = []
    for _ in range(3):
        before = os.times()
        assert rllib("--help").returncode == 0
        after = os.times()
        spent = after.children_user + after.children_system
        seconds.append(spent - before.children_user - before.children_system)
    assert 0.0 < min(seconds) < 1.0


def test_the_exit_codes_are_listed():
    listed = rllib("train", "--help").stdout.partition("Exit codes:")[2]
    assert all(code in listed for code in ("0 trained", "1 a trial", "2 something", "130 interrupted"))


def test_help_imports_neither_ray_nor_torch():
    check = SCRIPT.replace("main()", "\ntry: main()\nfinally: print(sorted(sys.modules))")
    done = subprocess.run(
        [sys.executable, "-c", check, "--help"], capture_output=True, text=True, timeout=180
    )
    assert "'rllib_haml.cli.app'" in done.stdout
    for heavy in ("'ray'", "'torch'", "'numpy'", "'gymnasium'"):
        assert heavy not in done.stdout


@pytest.mark.parametrize("command", ["train", "evaluate", "validate", "example"])
def test_every_command_shows_an_example(command: str):
    assert f"  rllib {command} " in rllib(command, "--help").stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["train"], "-f FILE"),
        (["train", "x.yaml"], "rllib train file FILE"),
        (["train", "-f", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["train", "--run", "PPO", "--config", "[1]"], "--config"),
        (["evaluate", "nowhere"], "is no checkpoint"),
        (["example", "get", "happo/nothing"], "no such example"),
    ],
)
def test_mistakes_exit_with_2(arguments: list[str], message: str):
    done = rllib(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_examples_are_served():
    listed = rllib("example", "list").stdout.splitlines()
    assert listed
    identifier = listed[0].split()[0]
    assert "run:" in rllib("example", "get", identifier).stdout


def test_validate_says_whether_the_drift_is_one(tmp_path: Path):
    """The README promises it: A2PO's joint clip with a wider compound clip is none, HAPPO's clip is one."""
    for run, verdict in (("HAPPO", "its drift meets HAML's conditions"), ("A2PO", "its drift is not zero")):
        file = tmp_path / f"{run}.yaml"
        file.write_text(
            f"{run}:\n  run: {run}\n  env: matrix_game\n  config:\n    clip_param: 0.05\n"
            f"    compound_clip: 0.1\n    env_config: {{game: climbing}}\n"
        )
        assert f"OK ({run}; {verdict}" in rllib("validate", str(file)).stdout
