"""`rllib evaluate` plays different episodes, also those of a run with a seed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from rllib_haml.cli.play import _episodes


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
