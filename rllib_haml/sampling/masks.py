"""Action masks, from the two places where environments put them, and the check that they leave a choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_haml._typing import AgentID
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.spaces import choices, holds_action_mask
from rllib_haml.sampling.vector_env import TeamStep


class ActionMasks:
    """The masks of all sub-environments, per agent an array (E, n_i) of bool.

    n_i is Σ `choices` of the action space. A mask lies beside the observation in a Dict (RLlib,
    PettingZoo) or in the agent's info under "action_mask" (PettingZoo). Rows without one are all True,
    those of absent agents too, so that no policy ever sees an empty set of actions.

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
        self._sizes = {agent: size for agent, space in action_spaces.items() if (size := sum(choices(space)))}
        self._in_obs = [a for a in self._sizes if holds_action_mask(observation_spaces[a], action_spaces[a])]
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
        given = np.asarray(mask)
        if given.dtype.kind != "b" and (given != (given != 0)).any():
            raise EnvironmentFault(f"its action_mask is {given.tolist()}: expected 0 and 1", agent=agent)
        self._array(agent)[row] = mask

    def _array(self, agent: AgentID) -> np.ndarray:
        if agent not in self.value:
            self.value[agent] = np.ones((self._num_envs, self._sizes[agent]), bool)
        return self.value[agent]


class MaskCheck:
    """Finds masks that leave an acting agent no option in one of its choices.

    A policy could only do the forbidden there, and its log-probabilities would mean nothing.

    Args:
        action_spaces: Of each agent, in the order of `VectorTeamEnv.agents`.
    """

    def __init__(self, action_spaces: Mapping[AgentID, gym.Space]) -> None:
        options = {agent: choices(space) for agent, space in action_spaces.items()}
        self._starts = {agent: np.cumsum([0, *n[:-1]]) for agent, n in options.items() if n}
        self._columns = {agent: i for i, agent in enumerate(action_spaces)}
        self._options = options
        self._masked: tuple[AgentID, ...] = ()
        self._joined_starts = np.zeros(0, int)

    def __call__(self, step: TeamStep, episode_steps: np.ndarray, environment: str) -> None:
        """Checks those who act next; after an episode's last step nobody does.

        Args:
            episode_steps: (E,) steps that each sub-environment's episode has taken, for the message.
            environment: The environment's name, for the message.

        Raises:
            EnvironmentFault: It names agent, sub-environment and step.
        """
        if self._all_leave_something(step.action_mask):
            return
        for agent, mask in step.action_mask.items():
            acts = step.active[:, self._columns[agent]] & ~(step.terminated | step.truncated)
            stuck = acts & self.forbid_everything(agent, mask)
            if stuck.any():
                row = int(stuck.argmax())
                raise nothing_allowed(agent, int(episode_steps[row]), environment, row)

    def _all_leave_something(self, masks: Mapping[AgentID, np.ndarray]) -> bool:
        """Whether that holds of everyone in every row, acting or not: one operation on all masks."""
        if not masks:
            return True
        if len(masks) != len(self._masked):
            self._masked = tuple(masks)
            options = [n for agent in masks for n in self._options[agent]]
            self._joined_starts = np.cumsum([0, *options[:-1]])
        joined = np.concatenate([masks[agent] for agent in self._masked], axis=1)
        return bool(np.logical_or.reduceat(joined, self._joined_starts, axis=1).all())

    def forbid_everything(self, agent: AgentID, masks: np.ndarray) -> np.ndarray:
        """(R,) bool of (R, n_i) masks: in which a choice of the agent has no option."""
        return np.logical_not(np.logical_or.reduceat(masks, self._starts[agent], axis=1).all(-1))


def nothing_allowed(
    agent: AgentID, step: int, environment: str | None = None, sub_env: int | None = None
) -> EnvironmentFault:
    """The fault of an environment whose mask leaves an acting agent nothing to do."""
    return EnvironmentFault(
        "its action_mask forbids every option of a choice, but it is to act: allow at least one, or give the "
        "agent no observation in this step",
        environment=environment,
        sub_env=sub_env,
        step=step,
        agent=agent,
    )
