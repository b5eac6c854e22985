"""A warning where observations lie far outside of their declared `Box`, whose bounds are then wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rllib_haml.sampling.vector_env import AgentID, TeamStep

logger = logging.getLogger("rllib_haml")

# Looked at after the making of an environment; later ones cost nothing.
_STEPS = 200
_told: set[str] = set()


class BoundsCheck:
    """Looks at an environment's first steps; the first stray value is told, once in a process.

    Far outside is farther from the bounds than these are from each other.

    Args:
        environment: Its name.
        observation_spaces: Of each agent, in the order of `VectorTeamEnv.agents`.
    """

    def __init__(self, environment: str, observation_spaces: Mapping[AgentID, gym.Space]) -> None:
        self._environment = environment
        self._boxes = [
            (column, agent, path, box)
            for column, (agent, space) in enumerate(observation_spaces.items())
            for path, box in _boxes(space)
        ]
        self._steps_left = _STEPS if self._boxes else 0

    def __call__(self, step: TeamStep) -> None:
        """Looks at what those see who act next."""
        if not self._steps_left or self._environment in _told:
            return
        self._steps_left -= 1
        for column, agent, path, box in self._boxes:
            values: Any = step.obs[agent]
            for key in path:
                values = values[key]
            self._look(agent, path, box, values[step.active[:, column]])

    def _look(self, agent: AgentID, path: tuple[Any, ...], box: spaces.Box, values: np.ndarray) -> None:
        """Args: `values` are (rows, *box.shape)."""
        low, high = box.low.astype(np.float64), box.high.astype(np.float64)
        width = high - low
        stray = np.argwhere((values > high + width) | (values < low - width))
        if not len(stray) or self._environment in _told:
            return
        _told.add(self._environment)
        index = tuple(stray[0])
        entry = index[1:]
        where = "".join(f"[{key!r}]" for key in (*path, *map(int, entry)))
        logger.warning(
            "%s: agent %r: observation%s is %g, far outside of its Box from %g to %g: are the bounds of its "
            "observation space right?",
            self._environment,
            agent,
            where,
            values[index],
            low[entry],
            high[entry],
        )


def _boxes(space: gym.Space, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], spaces.Box]]:
    """The boxes of real numbers in `space`, and where they lie."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
        for key, part in parts:
            yield from _boxes(part, (*path, key))
    elif isinstance(space, spaces.Box) and np.dtype(space.dtype).kind == "f":
        yield path, space
