"""`rllib evaluate` plays different episodes, also those of a run with a seed, and says what it lacks."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from click.testing import CliRunner
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from rllib_haml.cli import play
from rllib_haml.cli.app import rllib
from rllib_haml.cli.play import _episodes

CHECKPOINT = Path(__file__).parents[1] / "data" / "checkpoint" / "happo_climbing"


class FirstState(gym.Env):
    """Pays what it drew at the reset, and ends."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, config: Any = None) -> None:
        self._number = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._number = float(self.np_random.random())
        return np.array([self._number]), {}

    def step(self, action: Any) -> Any:
        return np.array([self._number]), self._number, True, False, {}


def test_no_episode_is_played_twice():
    config: Any = PPOConfig().environment(FirstState).env_runners(num_env_runners=0).debugging(seed=3)
    runner = SingleAgentEnvRunner(config=config)
    algorithm: Any = SimpleNamespace(env_runner=runner, config=config)
    assert len({episode.team_return for episode in _episodes(algorithm, 5, None)}) == 5


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a checkpoint of a run with other settings; its checksums, which do not fit, go unread."""

    def make(**settings: Any) -> Path:
        checkpoint = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint_000001")
        monkeypatch.setattr(play, "check_any", lambda path: None)
        file = checkpoint / "class_and_ctor_args.pkl"
        made_of = pickle.loads(file.read_bytes())
        made_of["ctor_args_and_kwargs"][0][0].update(settings)
        file.write_bytes(pickle.dumps(made_of))
        return checkpoint

    return make


def refused(checkpoint: Path) -> str:
    result = CliRunner().invoke(rllib, ["evaluate", str(checkpoint)])
    assert result.exit_code == 2, result.output
    assert result.output.count("\n") == 1, result.output
    return result.output


def test_a_checkpoint_whose_environment_lies_elsewhere(moved: Any):
    output = refused(moved(env="elsewhere:Meeting"))
    assert "'elsewhere:Meeting' cannot be imported" in output
    assert "`cd`" in output
    assert "`PYTHONPATH=DIR rllib evaluate CHECKPOINT`" in output


def test_a_checkpoint_whose_code_lies_elsewhere(moved: Any, monkeypatch: pytest.MonkeyPatch):
    class Mapping:
        __module__ = "elsewhere"

    module = ModuleType("elsewhere")
    module.Mapping, Mapping.__qualname__ = Mapping, "Mapping"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "elsewhere", module)
    checkpoint = moved(policy_mapping_fn=Mapping)
    monkeypatch.delitem(sys.modules, "elsewhere")
    output = refused(checkpoint)
    assert "No module named 'elsewhere'" in output
    assert "`PYTHONPATH=DIR rllib evaluate CHECKPOINT`" in output
