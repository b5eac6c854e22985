"""Preallocated (T, E, ...) buffers of one sampling call, and the fragments cut from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tree

from rllib_haml._typing import AgentID
from rllib_haml.modules.team import TeamAction
from rllib_haml.sampling.fragment import JointFragment
from rllib_haml.sampling.vector_env import TeamStep


class Recorder:
    """Takes in T joint steps of E sub-environments.

    Call `see` with what the team sees, `act` with what it does, `reward` with what it got, in turn; `cut`
    returns one sub-environment's rows since its last cut, `drop` forgets them.

    Args:
        length: T.
        first: What the team sees before the first step.
        action: The first joint action; it tells the shapes of actions.
    """

    def __init__(self, length: int, first: TeamStep, action: TeamAction):
        def buffer(rows: int):
            return lambda x: np.empty((rows, *x.shape), x.dtype)

        self.t = 0
        self.obs: Any = tree.map_structure(buffer(length + 1), first.obs)
        self.mask = {agent: buffer(length + 1)(mask) for agent, mask in first.action_mask.items()}
        self.active = buffer(length + 1)(first.active)
        self.state = None if first.state is None else buffer(length + 1)(first.state)
        self.actions: Any = tree.map_structure(buffer(length), action.actions)
        self.logp = {agent: buffer(length)(logp) for agent, logp in action.logp.items()}
        self.rewards = buffer(length)(first.reward)
        self.starts = np.zeros(len(first.active), dtype=int)
        self._seen = _leaves(self.obs, self.mask)
        self._acted = _leaves(self.actions, self.logp)

    def see(self, step: TeamStep) -> None:
        if len(step.action_mask) > len(self.mask):
            self._add_masks(step.action_mask)
        for row, value in zip(self._seen, _leaves(step.obs, step.action_mask), strict=True):
            row[self.t] = value
        self.active[self.t] = step.active
        if self.state is not None:
            self.state[self.t] = step.state

    def _add_masks(self, masks: dict[AgentID, np.ndarray]) -> None:
        """Makes room for masks that an environment gives for the first time; before, all was allowed."""
        for agent, mask in masks.items():
            if agent not in self.mask:
                self.mask[agent] = np.ones((len(self.active), *mask.shape), bool)
        self.mask = {agent: self.mask[agent] for agent in masks}  # its leaves in the order of theirs
        self._seen = _leaves(self.obs, self.mask)

    def act(self, action: TeamAction) -> None:
        for row, value in zip(self._acted, _leaves(action.actions, action.logp), strict=True):
            row[self.t] = value

    def reward(self, reward: np.ndarray) -> None:
        """Ends the joint step."""
        self.rewards[self.t] = reward
        self.t += 1

    def drop(self, e: int) -> int:
        """Forgets sub-environment e's rows since its last cut, and says how many they were."""
        lost = self.t - int(self.starts[e])
        self.starts[e] = self.t
        return lost

    def cut(self, e: int, last: TeamStep, agents: tuple[AgentID, ...], **about: Any) -> JointFragment | None:
        """Sub-environment e's rows since its last cut, followed by what `last` shows; None if none.

        Args:
            about: The fragment's other fields.
        """
        start, stop = int(self.starts[e]), self.t
        self.starts[e] = stop
        if start == stop:
            return None

        def followed(rows: np.ndarray, final: np.ndarray) -> np.ndarray:
            out = np.empty((stop - start + 1, *rows.shape[2:]), rows.dtype)
            out[:-1] = rows[start:stop, e]
            out[-1] = final[e]
            return out

        active = followed(self.active, last.active)
        acted = active[:-1]
        columns = {agent: i for i, agent in enumerate(agents)}

        def actions_of(agent: AgentID) -> Any:
            def rows(x: np.ndarray) -> np.ndarray:
                own = x[start:stop, e].copy()
                own[~acted[:, columns[agent]]] = 0
                return own

            return rows

        return JointFragment(
            obs={a: tree.map_structure(followed, self.obs[a], last.obs[a]) for a in agents},
            actions={a: tree.map_structure(actions_of(a), self.actions[a]) for a in agents},
            logp={a: actions_of(a)(self.logp[a]) for a in agents},
            active={a: active[:, i].copy() for a, i in columns.items()},
            action_mask={a: followed(self.mask[a], last.action_mask[a]) for a in self.mask},
            state=None if self.state is None or last.state is None else followed(self.state, last.state),
            reward=self.rewards[start:stop, e].copy(),
            **about,
        )


def _leaves(*branches: dict[AgentID, Any]) -> list[np.ndarray]:
    """All arrays, agent by agent; most agents have one, which spares the walk through a tree."""
    leaves: list[np.ndarray] = []
    for branch in branches:
        for value in branch.values():
            if isinstance(value, np.ndarray):
                leaves.append(value)
            else:
                leaves += tree.flatten(value)
    return leaves
