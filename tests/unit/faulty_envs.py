"""A sound environment that fails on demand, in whatever process it is."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from ray.rllib.env.multi_agent_env import MultiAgentEnv

AGENTS = ["left", "right"]
LENGTH = 10


class Faulty(MultiAgentEnv):
    """Two agents are paid for equal choices. Each file in `orders` makes the one who takes it fail once.

    A file's name is the fault, `raise`, `die`, `nan`, `shape` or `stall`; with `@3` behind it only the third
    step of an episode takes it, and what follows another `@` tells files apart. While there is a file
    `hold`, no step ends.

    Args:
        config: `orders` is the directory.
    """

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        config = config or {}
        self.orders = Path(config["orders"]) if config.get("orders") else None
        self.agents = self.possible_agents = list(AGENTS)
        self.observation_spaces = {a: Box(-1.0, 1.0, (2,), np.float32) for a in AGENTS}
        self.action_spaces = {a: Discrete(2) for a in AGENTS}
        self.t = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.t = 0
        return self._see(), {}

    def _see(self) -> dict[str, np.ndarray]:
        return {a: np.array([self.t / LENGTH, 1.0], np.float32) for a in AGENTS}

    def step(self, actions: dict[str, int]) -> Any:
        self.t += 1
        while self.orders and (self.orders / "hold").exists():
            time.sleep(0.01)
        obs, reward = self._see(), float(actions["left"] == actions["right"])
        match self._order():
            case "raise":
                raise OSError("the simulator lost its licence")
            case "die":
                os._exit(1)
            case "nan":
                obs["right"][0] = np.nan
            case "shape":
                obs["left"] = np.zeros(3, np.float32)
            case "stall":
                time.sleep(3600)
        over = self.t == LENGTH
        return obs, dict.fromkeys(AGENTS, reward), {"__all__": False}, {"__all__": over}, {}

    def _order(self) -> str | None:
        for file in sorted(self.orders.iterdir()) if self.orders else ():
            fault, at, *_ = [*file.name.split("@"), ""]
            if fault == "hold" or (at and int(at) != self.t):
                continue
            try:
                file.unlink()
            except FileNotFoundError:
                continue  # another process was faster
            return fault
        return None
