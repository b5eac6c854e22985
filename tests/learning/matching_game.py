"""A game with a known optimum for each kind of action space: everyone answers the cue that they see.

Each agent has an answer of its own to each cue, an element of its action space. An agent's score is the share
of its action's components that match; the team's reward is the product over agents, at best 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import tree
from gymnasium import spaces
from ray.rllib.env.multi_agent_env import MultiAgentEnv

CUES = 3
WIDTH = 0.4  # of the score's bell around a real number's answer, on the policy's scale [-1, 1]

KINDS: dict[str, gym.Space] = {
    "Box": spaces.Box(np.float32([-3.0, 0.0]), np.float32([1.0, 8.0]), dtype=np.float32),
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([3, 4]),
    "MultiBinary": spaces.MultiBinary(3),
    "Tuple": spaces.Tuple([spaces.Discrete(3), spaces.Box(0.0, 5.0, (1,), np.float32)]),
    "Dict": spaces.Dict(
        {
            "go": spaces.Box(-9.0, -3.0, (1,), np.float32),
            "lights": spaces.MultiBinary(2),
            "say": spaces.MultiDiscrete([2, 3]),
        }
    ),
}


def options(space: gym.Space) -> list[int]:
    """Options of each choice that a mask speaks of, in its order."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.tolist()
    parts = list(space.values()) if isinstance(space, spaces.Dict) else []
    parts = list(space) if isinstance(space, spaces.Tuple) else parts
    return [n for part in parts for n in options(part)]


def parts_of(space: gym.Space, action: Any) -> list[tuple[gym.Space, np.ndarray]]:
    """The elementary spaces of `space`, each with its part of `action`."""
    if isinstance(space, spaces.Dict):
        return [pair for key, part in space.items() for pair in parts_of(part, action[key])]
    if isinstance(space, spaces.Tuple):
        return [pair for part, a in zip(space, action, strict=True) for pair in parts_of(part, a)]
    return [(space, np.asarray(action).reshape(-1))]


def score(space: gym.Space, action: Any, answer: Any) -> float:
    """Share of components that match; a real number matches by a bell around the answer."""
    matches: list[float] = []
    for (part, given), (_, wanted) in zip(parts_of(space, action), parts_of(space, answer), strict=True):
        if isinstance(part, spaces.Box):
            away = 2 * (given - wanted) / (part.high - part.low)
            matches += np.exp(-((away / WIDTH) ** 2) / 2).tolist()
        else:
            matches += (given == wanted).astype(float).tolist()
    return float(np.mean(matches))


class MatchingGame(MultiAgentEnv):
    """Two agents with action spaces of one kind.

    Args:
        kind: Of `KINDS`.
        masked: Forbid each wrong option with probability 1/2, anew in every step. A forbidden action raises.
        memory: The answer is due one step after its cue.
        shuffled: Control: each step pays the score of another one.
        length: Steps of an episode.

    Attributes:
        scores: The team's last scores, whatever was paid.
    """

    def __init__(
        self,
        kind: str,
        masked: bool = False,
        memory: bool = False,
        shuffled: bool = False,
        length: int = 8,
    ) -> None:
        self.possible_agents = self.agents = ["ann", "bob"]
        super().__init__()
        self._space, self._memory, self._shuffled, self._length = KINDS[kind], memory, shuffled, length
        self._options = options(self._space) if masked else []
        self.action_spaces = dict.fromkeys(self.agents, self._space)
        cue: gym.Space = spaces.Box(0.0, 1.0, (CUES,), np.float32)
        if self._options:
            mask = spaces.MultiBinary(sum(self._options))
            cue = spaces.Dict({"action_mask": mask, "cue": cue})
        self.observation_spaces = dict.fromkeys(self.agents, cue)
        self._answers = [[self._answer(i, c) for c in range(CUES)] for i in range(len(self.agents))]
        self.scores: deque[float] = deque(maxlen=200)
        self._rng = np.random.default_rng()

    def _answer(self, agent: int, cue: int) -> Any:
        """Real numbers stay away from their bounds, so that clipping does not help."""
        self._space.seed(10 * agent + cue)
        answer = self._space.sample()

        def central(part: gym.Space, value: np.ndarray) -> np.ndarray:
            if not isinstance(part, spaces.Box):
                return value
            middle = (part.low + part.high) / 2
            return (middle + 0.8 * (value - middle)).astype(part.dtype)

        leaves = [central(part, value) for part, value in parts_of(self._space, answer)]
        shapes = tree.flatten(answer)
        return tree.unflatten_as(
            answer, [x.reshape(np.shape(s)) for x, s in zip(leaves, shapes, strict=True)]
        )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._time, self._due = 0, None
        return self._look(), {}

    def step(self, action_dict: Mapping[str, Any]) -> Any:
        for i, agent in enumerate(self.agents):
            self._check_allowed(agent, action_dict[agent], self._masks[i])
        reward = 0.0
        if self._due is not None:
            each = [
                score(self._space, action_dict[agent], self._answers[i][self._due[i]])
                for i, agent in enumerate(self.agents)
            ]
            self.scores.append(float(np.prod(each)))
            reward = self._rng.choice(self.scores) if self._shuffled else self.scores[-1]
        self._time += 1
        obs = self._look()
        rewards = dict.fromkeys(self.agents, float(reward))
        return obs, rewards, {"__all__": False}, {"__all__": self._time == self._length}, {}

    def _look(self) -> dict[str, Any]:
        before = getattr(self, "_cues", None) if self._time else None
        self._cues = self._rng.integers(CUES, size=len(self.agents))
        self._due = before if self._memory else self._cues
        self._masks = [self._mask(i) for i in range(len(self.agents))]
        seen = np.eye(CUES, dtype=np.float32)[self._cues]
        if not self._options:
            return dict(zip(self.agents, seen, strict=True))
        return {
            agent: {"action_mask": mask, "cue": cue}
            for agent, mask, cue in zip(self.agents, self._masks, seen, strict=True)
        }

    def _mask(self, agent: int) -> np.ndarray:
        mask = (self._rng.random(sum(self._options)) < 0.5).astype(np.int8)
        cue = 0 if self._due is None else self._due[agent]
        mask[self._chosen(self._answers[agent][cue])] = 1
        return mask

    def _chosen(self, action: Any) -> np.ndarray:
        """The entries of a mask that `action` needs."""
        if not self._options:
            return np.zeros(0, int)
        discrete = (spaces.Discrete, spaces.MultiDiscrete)
        taken = [a for part, a in parts_of(self._space, action) if isinstance(part, discrete)]
        return np.cumsum([0, *self._options[:-1]]) + np.concatenate(taken).astype(int)

    def _check_allowed(self, agent: str, action: Any, mask: np.ndarray) -> None:
        if not self._space.contains(action):
            raise ValueError(f"{agent}: {action!r} is not in {self._space}")
        if not mask[self._chosen(action)].all():
            raise ValueError(f"{agent}: {action!r} is forbidden by {mask}")
