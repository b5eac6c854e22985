"""A team whose spaces are given by name: an environment that refuses whatever is not in its spaces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from ray.rllib.env.multi_agent_env import MultiAgentEnv

ACTIONS: dict[str, gym.Space] = {
    "box": spaces.Box(np.float32([-3.0, 0.5]), np.float32([0.0, 9.0]), dtype=np.float32),
    "table": spaces.Box(2.0, 7.0, (2, 3), np.float32),
    "number": spaces.Box(-2.0, 5.0, (), np.float32),
    "float64": spaces.Box(-0.1, 0.1, (2,), np.float64),
    "discrete": spaces.Discrete(4),
    "multi discrete": spaces.MultiDiscrete([3, 2]),
    "multi binary": spaces.MultiBinary(3),
    "tuple": spaces.Tuple([spaces.Discrete(3), spaces.Box(0.0, 5.0, (1,), np.float32)]),
    "dict": spaces.Dict(
        {
            "say": spaces.MultiDiscrete([2, 3]),
            "go": spaces.Box(-9.0, -3.0, (2,), np.float32),
            "lights": spaces.MultiBinary(2),
            "then": spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]),
        }
    ),
}
"""Action spaces of every kind."""


def choices(space: gym.Space) -> list[int]:
    """Options of each choice that a mask over `space` speaks of, in its order."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.tolist()
    parts = list(space.values()) if isinstance(space, spaces.Dict) else []
    parts = list(space) if isinstance(space, spaces.Tuple) else parts
    return [n for part in parts for n in choices(part)]


def chosen(space: gym.Space, action: Any) -> list[int]:
    """What `action` chose, in the order of `choices(space)`."""
    if isinstance(space, spaces.Discrete):
        return [int(action)]
    if isinstance(space, spaces.MultiDiscrete):
        return action.tolist()
    if isinstance(space, spaces.Dict):
        return [c for key, part in space.items() for c in chosen(part, action[key])]
    if isinstance(space, spaces.Tuple):
        return [c for part, a in zip(space, action, strict=True) for c in chosen(part, a)]
    return []


def random_mask(space: gym.Space, rng: np.random.Generator) -> np.ndarray:
    """A mask that leaves at least one option of each choice."""
    masks = []
    for n in choices(space):
        mask = rng.random(n) < 0.5
        mask[rng.integers(n)] = True
        masks.append(mask)
    return np.concatenate(masks).astype(np.int8)


class SpacesEnv(MultiAgentEnv):
    """One agent for each of `actions`, named like it; observations are random, the reward is 1.

    Args:
        actions: Names in `ACTIONS`.
        masks: Where the masks of those who can have one are: in the observation, in infos, or nowhere.
        observations: Space of everyone's observation (beside the mask).
        skips: Whether agents miss steps at random.
        everything_forbidden: Step at which a mask forbids every action to its agent.
    """

    def __init__(
        self,
        actions: tuple[str, ...] = tuple(ACTIONS),
        masks: str | None = None,
        observations: gym.Space | None = None,
        skips: bool = False,
        everything_forbidden: int | None = None,
        length: int = 6,
    ) -> None:
        self.possible_agents = self.agents = list(actions)
        super().__init__()
        self.action_spaces = {name: ACTIONS[name] for name in actions}
        self._masked = [a for a in actions if masks and choices(ACTIONS[a])]
        self._in_obs, self._skips, self._length = masks == "obs", skips, length
        self._forbidden = everything_forbidden
        seen = observations or spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.observation_spaces = dict.fromkeys(actions, seen)
        if self._in_obs:
            for agent in self._masked:
                size = sum(choices(ACTIONS[agent]))
                self.observation_spaces[agent] = spaces.Dict(
                    {"action_mask": spaces.MultiBinary(size), "seen": seen}
                )
        self._episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._episode, self._time = self._episode + 1, 0
        self._rng = np.random.default_rng((self._episode, 7))
        return self._look()

    def step(self, action_dict: Mapping[str, Any]) -> Any:
        assert set(action_dict) == self._acting, (set(action_dict), self._acting)
        for agent, action in action_dict.items():
            space = self.action_spaces[agent]
            assert space.contains(action), f"{agent}: {action!r} is not in {space}"
            self._check_allowed(agent, action)
        self._time += 1
        rewards = dict.fromkeys(action_dict, 1.0)
        over = {"__all__": self._time == self._length}
        obs, infos = self._look(everyone=over["__all__"])
        return obs, rewards, {"__all__": False}, over, infos

    def _check_allowed(self, agent: str, action: Any) -> None:
        mask, start = self._masks.get(agent), 0
        for n, choice in zip(choices(self.action_spaces[agent]), chosen(ACTIONS[agent], action), strict=True):
            assert mask is None or mask[start + choice] or not mask.any(), (
                f"{agent}: {action!r} is forbidden by {mask}"
            )
            start += n

    def _look(self, everyone: bool = True) -> Any:
        self.agents = [
            a for a in self.possible_agents if everyone or not self._skips or self._rng.random() < 0.7
        ]
        self._acting = set(self.agents)
        self._masks = {a: random_mask(ACTIONS[a], self._rng) for a in self._masked if a in self._acting}
        if self._time == self._forbidden:
            for mask in self._masks.values():
                mask[:] = 0
        obs = {}
        for agent in self.agents:
            space = self.observation_spaces[agent]
            space.seed(int(self._rng.integers(2**31)))
            obs[agent] = space.sample()
            if self._in_obs and agent in self._masks:
                obs[agent]["action_mask"] = self._masks[agent]
        if self._in_obs:
            return obs, {}
        return obs, {a: {"action_mask": mask} for a, mask in self._masks.items()}
