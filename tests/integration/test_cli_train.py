"""The `rllib` command end to end, each time in a process of its own as a user starts it."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = "import sys; sys.argv[0] = 'rllib'; from rllib_haml.cli import main; main()"

FILE = """\
cartpoles:
  run: PPO
  env: two_poles.TwoPoles
  stop: {training_iteration: 12}
  checkpoint_freq: 1
  config:
    num_env_runners: 0
    train_batch_size: 500
    num_epochs: 1
    minibatch_size: 500
    model: {fcnet_hiddens: [16]}
    multiagent: {policies: [p0, p1], policy_mapping_fn: two_poles.policy_of}
"""

MODULE = """\
import numpy as np
from ray.rllib.examples.envs.classes.multi_agent import MultiAgentCartPole


class TwoPoles(MultiAgentCartPole):
    def __init__(self, config):
        super().__init__({"num_agents": 2})
        self.steps, self.config = 0, config

    def step(self, actions):
        self.steps += 1
        if self.steps > self.config.get("breaks_after", 1e9):
            raise RuntimeError("the pole broke")
        return super().step(actions)

    def render(self):
        return np.zeros((8, 8, 3), np.uint8) if self.config.get("render_mode") else None


def policy_of(agent_id, *args, **kwargs):
    return f"p{agent_id}"
"""


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A directory with a YAML file and the module of its environment."""
    (tmp_path / "team.yaml").write_text(FILE)
    (tmp_path / "two_poles.py").write_text(MODULE)
    return tmp_path


def start(workplace: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=workplace,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def train(workplace: Path, *arguments: str) -> subprocess.Popen[str]:
    options = ["--ray-num-cpus", "1", "--storage-path", str(workplace / "results")]
    return start(workplace, "train", "-f", "team.yaml", *options, *arguments)


def iterations(lines: Iterator[str]) -> Iterator[int]:
    """The iteration of every progress line, as they come."""
    for line in lines:
        found = re.match(r"cartpoles +(\d+) / \d+ iterations", line)
        if found:
            yield int(found.group(1))


def noted_iterations(results: Path) -> int:
    """How far a run is by what `--resume` continues from, which Tune notes about once a second."""
    notes = sorted(results.glob("experiment_state-*.json"))
    try:
        ((_, measured),) = json.loads(notes[-1].read_text())["trial_data"]
    except (IndexError, json.JSONDecodeError):  # not begun, or being written
        return 0
    return (json.loads(measured)["last_result"] or {}).get("training_iteration", 0)


def test_a_killed_run_resumes_and_can_be_played(workplace: Path):
    killed = train(workplace)
    assert killed.stdout is not None
    for _ in iterations(iter(killed.stdout.readline, "")):
        if noted_iterations(workplace / "results" / "cartpoles") >= 2:
            killed.send_signal(signal.SIGKILL)
            break
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL

    code, output = finish(train(workplace, "--resume"))
    assert code == 0, output
    resumed = list(iterations(iter(output.splitlines())))
    assert resumed[0] > 1, "it started from the beginning"
    assert resumed == list(range(resumed[0], 13))

    checkpoint = re.findall(r"rllib evaluate (\S+)", output)[-1]
    code, output = finish(start(workplace, "evaluate", checkpoint, "--episodes", "2", "--render", "videos"))
    assert code == 0, output
    returns = [float(r) for r in re.findall(r"^episode .* team return ([\d.]+)", output, re.M)]
    assert len(returns) == 2
    assert f"mean {sum(returns) / 2:.2f}" in output
    assert len(list((workplace / "videos").glob("*.gif"))) == 2


def test_sigterm_is_ctrl_c_and_a_supervisors_command_goes_on(workplace: Path):
    """As `docker stop`, Kubernetes and Slurm end what runs: with a checkpoint, whatever their frequency."""
    rarely = ("--stop", '{"training_iteration": 400}', "--checkpoint-freq", "0", "--auto-resume")
    stopped = train(workplace, *rarely)
    assert stopped.stdout is not None
    for number in iterations(iter(stopped.stdout.readline, "")):
        if number >= 2:
            stopped.send_signal(signal.SIGTERM)
            break
    code, output = finish(stopped)
    assert code == 130, output
    assert "cartpoles: ends with a checkpoint after this iteration, within 30 s" in output
    last = max(iterations(iter(output.splitlines())), default=2)
    for word in ("SIGTERM", "Traceback", "***", "@ 0x"):
        assert word not in output
    checkpoint = re.findall(r"cartpoles: checkpoint +(\S+)", output)[0]
    assert f"cartpoles: results      {workplace}/results/cartpoles\n" in output
    assert f"cartpoles: interrupted. The same command continues from {checkpoint}\n" in output

    again = train(workplace, *rarely)
    assert again.stdout is not None
    lines = iter(again.stdout.readline, "")
    assert f"cartpoles: it continues from {checkpoint}\n" in itertools.islice(lines, 5)
    assert next(iterations(lines)) == last + 1, "no iteration is lost"
    again.send_signal(signal.SIGTERM)
    again.send_signal(signal.SIGINT)
    code, output = finish(again)
    assert code == 130
    assert "interrupted at once" in output


CHEETAH = """\
cheetah:
  run: HAPPO
  env: mamujoco
  stop: {training_iteration: 40}
  checkpoint_freq: 1
  config:
    env_config: {scenario: HalfCheetah, agent_conf: 2x3}
    num_env_runners: 0
    num_envs_per_env_runner: 4
    train_batch_size_per_learner: 800
    seed: 7
    model_config: {fcnet_hiddens: [32]}
"""


def losses(results: Path) -> dict[int, tuple[float, ...]]:
    """Per iteration what the update and the episodes gave; a repeated iteration's last word."""
    found = {}
    for file in results.glob("cheetah/*/result.json"):
        for result in map(json.loads, file.read_text().splitlines()):
            learners, runner = result["learners"], result["env_runners"]
            found[result["training_iteration"]] = (
                learners["agent_0"]["policy_loss"],
                learners["agent_1"]["grad_norm"],
                learners["critic"]["vf_loss"],
                runner.get("team_return_mean"),
                runner["num_env_steps_sampled_lifetime"],
            )
    return found


def test_a_killed_happo_run_ends_as_if_it_had_not_been(workplace: Path):
    """200 steps per iteration and sub-environment: the kill falls into episodes of 1000 steps."""
    (workplace / "cheetah.yaml").write_text(CHEETAH)

    def run(results: str, *more: str) -> subprocess.Popen[str]:
        options = ["--ray-num-cpus", "1", "--storage-path", str(workplace / results)]
        return start(workplace, "train", "-f", "cheetah.yaml", *options, *more)

    undisturbed, killed = run("straight"), run("killed")
    assert killed.stdout is not None
    for line in iter(killed.stdout.readline, ""):
        if re.match(r"cheetah +3 / 40", line):
            time.sleep(1.5)
            killed.send_signal(signal.SIGKILL)
            break
    killed.communicate()
    for code, output in map(finish, (run("killed", "--resume"), undisturbed)):
        assert code == 0, output
    straight = losses(workplace / "straight")
    assert sorted(straight) == list(range(1, 41))
    assert straight[40][3] is not None, "an episode must have ended"
    assert losses(workplace / "killed") == straight


def test_a_failing_environment_exits_with_1_and_its_cause(workplace: Path):
    options = ("--max-failures", "1", "--config", '{"env_config": {"breaks_after": 700}}')
    code, output = finish(train(workplace, *options))
    assert code == 1
    assert "failure 1 of 1, goes on from its last checkpoint: RuntimeError: the pole broke" in output
    assert "trial failed: RuntimeError: the pole broke" in output
    assert "Traceback" not in output


def test_storage_below_a_uri_holds_all_that_a_directory_would(workplace: Path):
    """An experiment after the first one begins, and what is printed at the end can be typed."""
    (workplace / "team.yaml").write_text(FILE + FILE.replace("cartpoles:", "second:"))
    storage = f"file://{workplace}/remote"
    short = ("--stop", '{"training_iteration": 2}', "--storage-path", storage)
    code, output = finish(train(workplace, *short))
    assert code == 0, output
    assert "interrupted" not in output
    for name in ("cartpoles", "second"):
        assert f"{name}: results      {storage}/{name}\n" in output
    checkpoint = re.findall(r"rllib evaluate (\S+)", output)[-1]
    assert checkpoint.startswith(f"{storage}/second/")
    played = start(workplace, "evaluate", checkpoint, "--episodes", "1")
    resumed = train(workplace, *short, "--resume")
    code, output = finish(played)
    assert code == 0, output
    assert "(1 episodes)" in output
    code, output = finish(resumed)
    assert code == 2
    assert "nothing to resume" in output
    code, output = finish(start(workplace, "evaluate", f"{storage}/nothing"))
    assert code == 2, output


def test_a_gpu_that_is_not_there_is_an_error(workplace: Path):
    options = ("--ray-num-gpus", "0", "--config", '{"num_gpus_per_learner": 1}')
    code, output = finish(train(workplace, *options))
    assert code == 2
    assert "asks for 1 GPU, and Ray has 0" in output


def test_happo_trains_from_the_command_line_over_a_grid(workplace: Path):
    config = """{"env_config": {"game": "climbing"}, "num_env_runners": 0,
                 "train_batch_size_per_learner": 64, "lr": {"grid_search": [5e-4, 1e-3]}}"""
    process = start(
        workplace,
        *("train", "--run", "HAPPO", "--env", "matrix_game", "--config", config, "--seed", "1"),
        *("--stop", '{"env_runners/team_return_mean": 1e9, "num_env_steps_sampled_lifetime": 128}'),
        *("--ray-num-cpus", "1", "--storage-path", str(workplace), "--experiment-name", "game"),
    )
    code, output = finish(process)
    assert code == 0, output
    for line in ("game#00000  lr=0.0005", "game#00001  lr=0.001", "128 / 128 steps"):
        assert line in output
