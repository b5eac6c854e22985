"""Episodes of 2 or 20 steps, each as likely as the other whatever is done; the return is the length."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv

from rllib_haml import HAPPOConfig
from rllib_haml.sampling.joint_env_runner import JointEnvRunner

SHORT, LONG = 2, 20
MEAN, DEVIATION = 11.0, 9.0


class Lottery(ParallelEnv):
    """`stepped` counts the steps of all of them."""

    metadata: ClassVar = {"name": "lottery"}
    stepped = 0

    def __init__(self, config: Any = None) -> None:
        self.possible_agents, self.agents = ["ann", "bob"], []
        self._rng = np.random.default_rng(0)

    def observation_space(self, agent: str) -> Box:
        return Box(0, LONG, (1,), np.float32)

    def action_space(self, agent: str) -> Discrete:
        return Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self._rng = self._rng if seed is None else np.random.default_rng(seed)
        self._left = int(self._rng.choice([SHORT, LONG]))
        self.agents = self.possible_agents[:]
        return self._look(), {}

    def step(self, actions: dict[str, Any]) -> Any:
        Lottery.stepped += 1
        self._left -= 1
        live, over = self.agents, self._left == 0
        self.agents = [] if over else live
        ends = dict.fromkeys(live, over)
        return self._look(), dict.fromkeys(live, 1.0), ends, dict.fromkeys(live, False), {}

    def _look(self) -> Any:
        return {agent: np.array([self._left], np.float32) for agent in self.possible_agents}


def config(num_envs: int = 8) -> Any:
    settings: Any = HAPPOConfig().environment("lottery_env:Lottery").debugging(seed=1)
    settings.env_runners(num_env_runners=0, num_envs_per_env_runner=num_envs)
    return settings.rl_module(model_config={"fcnet_hiddens": [4]})


def runner(num_envs: int = 8, worker_index: int = 0) -> JointEnvRunner:
    settings = config(num_envs)
    settings.validate()
    return JointEnvRunner(config=settings, worker_index=worker_index)
