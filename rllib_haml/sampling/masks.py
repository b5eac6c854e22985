"""Action masks, from the two places where environments put them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.spaces import holds_action_mask, mask_size
from rllib_haml.sampling.team_env import AgentID


class ActionMasks:
    """The masks of all sub-environments, per agent an array (E, n_i) of bool.

    A mask lies beside the observation in a Dict (RLlib, PettingZoo) or in the agent's info under
    "action_mask" (PettingZoo). Rows without one are all True, those of absent agents too, so that
    no policy ever sees an empty set of actions.

    Attributes:
        value: The arrays; those of masks that come with infos appear when the first one comes.
    """

    def __init__(
        self,
        observation_spaces: Mapping[AgentID, gym.Space],
        action_spaces: Mapping[AgentID, gym.Space],
        num_envs: int,
    ) -> None:
        self._num_envs = num_envs
        self._sizes = {
            agent: size for agent, space in action_spaces.items() if (size := mask_size(space)) is not None
        }
        self._in_obs = [a for a in self._sizes if holds_action_mask(observation_spaces[a])]
        self._in_info = [a for a in self._sizes if a not in self._in_obs]
        self.value: dict[AgentID, np.ndarray] = {}
        for agent in self._in_obs:
            self._array(agent)

    def __bool__(self) -> bool:
        """Whether any agent's actions can be masked at all."""
        return bool(self._sizes)

    def write(
        self,
        row: int,
        acting: Sequence[AgentID],
        obs: Mapping[AgentID, Any],
        infos: Mapping[AgentID, Any],
    ) -> None:
        """Fills `row`.

        Raises:
            EnvironmentFault: A mask has another size than the action space.
        """
        for agent in self._in_obs:
            mask = obs[agent]["action_mask"] if agent in acting else True
            self._put(agent, row, mask)
        for agent in self._in_info:
            info = infos.get(agent) if agent in acting else None
            mask = info.get("action_mask") if info else None
            if mask is not None:
                self._put(agent, row, mask)
            elif agent in self.value:
                self.value[agent][row] = True

    def read(self, row: int) -> dict[AgentID, np.ndarray]:
        """Copies of the masks' rows."""
        return {agent: mask[row].copy() for agent, mask in self.value.items()}

    def restore(self, row: int, masks: Mapping[AgentID, np.ndarray]) -> None:
        """Puts back what `read` gave."""
        for agent, mask in masks.items():
            self._array(agent)[row] = mask

    def _put(self, agent: AgentID, row: int, mask: Any) -> None:
        if mask is not True and np.shape(mask) != (self._sizes[agent],):
            raise EnvironmentFault(
                f"its action_mask has shape {np.shape(mask)}, its action space needs {(self._sizes[agent],)}",
                agent=agent,
            )
        self._array(agent)[row] = mask

    def _array(self, agent: AgentID) -> np.ndarray:
        if agent not in self.value:
            self.value[agent] = np.ones((self._num_envs, self._sizes[agent]), bool)
        return self.value[agent]
