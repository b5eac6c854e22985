"""Environments that cannot be trained in, each for one reason; named by tests as `malformed_envs:Name`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, Text
from pettingzoo import AECEnv
from ray.rllib.env.multi_agent_env import MultiAgentEnv


class Sound(MultiAgentEnv):
    """Nothing is wrong with this one: the control."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.possible_agents = self.agents = ["ann", "bob"]
        self.observation_spaces = {agent: Box(-1, 1, (2,), np.float32) for agent in self.agents}
        self.action_spaces = {agent: Discrete(3) for agent in self.agents}


class WithoutAgents(Sound):
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.possible_agents = self.agents = []


class Breaks(Sound):
    def __init__(self, config: Any = None) -> None:
        raise KeyError("map_name")


class WithoutConfig(Sound):
    def __init__(self) -> None:
        super().__init__()


class WithoutSpaces(Sound):
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.observation_spaces = self.observation_space = None  # type: ignore[assignment]


class OneSpaceMissing(Sound):
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        del self.action_spaces["bob"]


class NumberAsSpace(Sound):
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.action_spaces["bob"] = 3  # type: ignore[assignment]


class ReadsText(Sound):
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.observation_spaces["bob"] = Text(4)  # type: ignore[assignment]


class CountsFromOne(Sound):
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.action_spaces["bob"] = Discrete(3, start=1)


class Alone(gym.Env):
    pass


class TurnBased(AECEnv):
    pass


def nothing(config: Any) -> None:
    """Forgets to return what it made."""


constant = 5
