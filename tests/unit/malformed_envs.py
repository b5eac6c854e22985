"""Environments that cannot be trained in, each for one reason; named by tests as `malformed_envs:Name`."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Any, ClassVar

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

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self._look(), {}

    def step(self, action_dict: Any) -> Any:
        return self._look(), dict.fromkeys(self.agents, 1.0), {"__all__": False}, {"__all__": False}, {}

    def _look(self) -> Any:
        return {agent: np.zeros(2, np.float32) for agent in self.agents}


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


class BreaksAtReset(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        raise OSError("no map of this name")


class BreaksLater(Sound):
    """After fewer steps than `rllib validate` takes, and more than one."""

    steps = 0

    def step(self, action_dict: Any) -> Any:
        self.steps += 1
        if self.steps == 7:
            raise OSError("the simulator lost its licence")
        return super().step(action_dict)


class PaysUnequally(Sound):
    def step(self, action_dict: Any) -> Any:
        obs, _, *rest = super().step(action_dict)
        return (obs, {"ann": 1.0, "bob": 2.0}, *rest)


class Masks(Sound):
    """Counts what the mask forbids and is done all the same."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        for agent in self.agents:
            self.observation_spaces[agent] = gym.spaces.Dict(
                {"observation": Box(-1, 1, (2,), np.float32), "action_mask": Box(0, 1, (3,), np.int8)}
            )

    def _look(self) -> Any:
        mask = np.array([0, 1, 0], np.int8)
        return {a: {"observation": np.zeros(2, np.float32), "action_mask": mask} for a in self.agents}

    def step(self, action_dict: Any) -> Any:
        if set(action_dict.values()) != {1}:
            raise ValueError(f"forbidden: {action_dict}")
        return super().step(action_dict)


class Slow(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        time.sleep(60)
        raise OSError("after all this time")


class OnePerProcess(Sound):
    """As a simulator that is a global of its process: the second one is refused."""

    made = 0

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        # The first is made, and closed, to look at its spaces.
        if OnePerProcess.made:
            raise RuntimeError("the simulator runs already")
        OnePerProcess.made += 1

    def close(self) -> None:
        OnePerProcess.made -= 1


class HangsWithTwo(OnePerProcess):
    """The same, where the second waits for a lock in C that never comes free; no signal ends that."""

    def __init__(self, config: Any = None) -> None:
        try:
            super().__init__()
        except RuntimeError:
            hang_in_c()


class CrashesWithTwo(OnePerProcess):
    def __init__(self, config: Any = None) -> None:
        try:
            super().__init__()
        except RuntimeError:
            os.kill(os.getpid(), signal.SIGSEGV)


class Hangs(Sound):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        hang_in_c()


class HangsWhenMade(Sound):
    def __init__(self, config: Any = None) -> None:
        hang_in_c()


class SharesItsPlaces(Sound):
    """Two copies move the same pieces."""

    places: ClassVar[list[float]] = [0.0, 0.0]

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.places[:] = 0.0, 0.0
        return super().reset()

    def step(self, action_dict: Any) -> Any:
        for i, agent in enumerate(self.agents):
            self.places[i] = (self.places[i] + 0.1 * action_dict[agent]) % 1
        return super().step(action_dict)

    def _look(self) -> Any:
        return {agent: np.array(self.places, np.float32) for agent in self.agents}


class OwnPlaces(SharesItsPlaces):
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.places = [0.0, 0.0]  # type: ignore[misc]


class DrawsFromTheGlobalGenerator(Sound):
    """Copies take numbers from one generator, which is no harm."""

    def _look(self) -> Any:
        return {agent: np.random.uniform(-1, 1, 2).astype(np.float32) for agent in self.agents}


class Creeps(Sound):
    """Few steps per second."""

    def step(self, action_dict: Any) -> Any:
        time.sleep(0.05)
        return super().step(action_dict)


def hang_in_c() -> None:
    library, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    for _ in range(2):
        library.pthread_mutex_lock(mutex)


class Alone(gym.Env):
    pass


class TurnBased(AECEnv):
    pass


def nothing(config: Any) -> None:
    """Forgets to return what it made."""


constant = 5
