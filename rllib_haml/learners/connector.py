"""From fragments to the columns of a joint batch: the one learner connector."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import tree
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.utils.numpy import convert_to_numpy
from torch import Tensor

from rllib_haml._typing import AgentID
from rllib_haml.learners.batch import ACTIVE, ANY_ACTIVE, ENV_T, EPISODE, LAST, ROW, STATE, TERMINATED
from rllib_haml.modules.actor import ACTION_MASK
from rllib_haml.modules.critic import CRITIC
from rllib_haml.modules.encoders import flat_size, flatten_rows
from rllib_haml.modules.images import Image, find_images
from rllib_haml.sampling.fragment import JointFragment
from rllib_haml.sampling.metrics import rewards_of
from rllib_haml.sampling.spaces import zeros
from rllib_haml.sampling.team import Team, TeamReward


class JointBatchConnector(ConnectorV2):
    """Turns JointFragments into aligned columns per module, on the learner's device.

    Under each policy with K agents, S rows: `obs`, `actions`, `action_logp`, `active` (and `action_mask`)
    of shape (S, K, ...); of a recurrent one also `state_in`, its state before each fragment, (F, K, ...).
    Row r is the same joint step under every policy. Under the critic, each fragment's T rows followed by one
    for the state after them, S + F rows in all: `state`, `reward`, `terminated`, `any_active`, `row` (its
    place in the global batch) and `last`, which marks those F rows; of each fragment (F,) `episode`, a
    number that stands for it, and `env_t`, its first step's.

    Args:
        team: Who plays.
        team_reward: How the agents' rewards become one.
        device: The learner's.
        environment: Its name, for messages.
        critic_id: A critic's name; the first one's, if each policy has its own.
    """

    def __init__(
        self,
        team: Team,
        team_reward: TeamReward,
        device: Any,
        environment: str,
        critic_id: str = CRITIC,
    ):
        super().__init__()
        self._critic_id = critic_id
        self._team, self._device, self._environment = team, device, environment
        self._rule: TeamReward = team_reward

    def __call__(self, *, rl_module: Any, batch: dict[str, Any], episodes: list[Any], **kwargs: Any) -> Any:
        for episode in episodes:
            if not isinstance(episode, JointFragment):
                raise TypeError(f"The learner takes JointFragments, got a {type(episode).__name__}.")
        columns = {
            module_id: self._policy_columns(agents, episodes, rl_module and rl_module[module_id])
            for module_id, agents in self._team.members().items()
        }
        return {**columns, self._critic_id: self._critic_columns(episodes)}

    def _policy_columns(
        self, agents: list[Any], fragments: Sequence[JointFragment], module: Any
    ) -> dict[str, Any]:
        first = agents[0]
        columns = {
            Columns.OBS: self._stack(
                [[tree.map_structure(lambda x: x[:-1], f.obs[a]) for a in agents] for f in fragments],
                zeros(self._team.observation_spaces[first], 0, len(agents)),
            ),
            Columns.ACTIONS: self._stack(
                [[f.actions[a] for a in agents] for f in fragments],
                zeros(self._team.action_spaces[first], 0, len(agents)),
            ),
            Columns.ACTION_LOGP: self._stack(
                [[f.logp[a] for a in agents] for f in fragments], np.zeros((0, len(agents)), np.float32)
            ),
            ACTIVE: self._stack(
                [[f.active[a][:-1] for a in agents] for f in fragments], np.zeros((0, len(agents)), bool)
            ),
        }
        if masks := _masks(agents, fragments):
            columns[ACTION_MASK] = self._stack(masks, None)
        initial = convert_to_numpy(module.get_initial_state()) if module is not None else {}
        if initial:
            empty = tree.map_structure(lambda x: np.zeros((0, len(agents), *x.shape), x.dtype), initial)
            states = [[_one_row(f.actor_state.get(a, initial)) for a in agents] for f in fragments]
            columns[Columns.STATE_IN] = self._stack(states, empty)
        return columns

    def _critic_columns(self, fragments: Sequence[JointFragment]) -> dict[str, Tensor]:
        def padded(rows: list[np.ndarray], dtype: Any) -> Tensor:
            parts = [np.append(r, r.dtype.type(0)) for r in rows] or [np.zeros(0)]
            return torch.as_tensor(np.concatenate(parts).astype(dtype)).to(self._device)

        lengths = [len(f) for f in fragments]
        return {
            STATE: self._states(fragments),
            Columns.REWARDS: padded(
                [rewards_of(f, self._rule, self._environment) for f in fragments], np.float32
            ),
            TERMINATED: padded([_at_end(len(f), f.terminated) for f in fragments], bool),
            ANY_ACTIVE: padded(
                [np.any([x[:-1] for x in f.active.values()], axis=0) for f in fragments], bool
            ),
            ROW: padded([f.first_row + np.arange(len(f)) for f in fragments], np.int64),
            LAST: torch.as_tensor(
                np.concatenate([np.zeros(0, bool), *(_at_end(n + 1, True) for n in lengths)])
            ).to(self._device),
            EPISODE: torch.tensor([_digest(f.episode_id) for f in fragments], dtype=torch.int64).to(
                self._device
            ),
            ENV_T: torch.tensor([f.env_t for f in fragments], dtype=torch.int64).to(self._device),
        }

    def _states(self, fragments: Sequence[JointFragment]) -> Tensor:
        """(S + F, D): the environment's state, or everyone's flattened observation and alive bit."""
        team = self._team
        if team.state_space is not None:
            states = self._concatenate([_state(f) for f in fragments], zeros(team.state_space, 0))
            return flatten_rows(team.state_space, states).float()
        parts = []
        for agent in team.agents:
            space = team.observation_spaces[agent]
            obs = self._concatenate([f.obs[agent] for f in fragments], zeros(space, 0))
            alive = self._concatenate([f.active[agent] for f in fragments], np.zeros(0, bool))
            seen = torch.where(alive[:, None], flatten_rows(space, obs), 0)
            parts += [seen, alive[:, None].float()]
        return torch.cat(parts, dim=-1).float()

    def _concatenate(self, rows: list[Any], empty: Any) -> Any:
        """Trees of arrays (T, ...) → one tree of tensors (ΣT, ...) on the device."""
        joined = tree.map_structure(lambda *x: np.concatenate(x), *rows) if rows else empty
        return tree.map_structure(lambda x: torch.as_tensor(x).to(self._device), joined)

    def _stack(self, rows: list[list[Any]], empty: Any) -> Any:
        """Per fragment K trees of arrays (T, ...) → one tree of tensors (ΣT, K, ...) on the device."""
        stacked = [tree.map_structure(lambda *x: np.stack(x, axis=1), *agents) for agents in rows]
        return self._concatenate(stacked, empty)


def state_size(team: Team) -> int:
    """D, the width of the critic's input."""
    if team.state_space is not None:
        return flat_size(team.state_space)
    return sum(flat_size(space) + 1 for space in team.observation_spaces.values())


def state_images(team: Team) -> list[Image]:
    """The images in the critic's input."""
    if team.state_space is not None:
        return find_images(team.state_space)
    images: list[Image] = []
    start = 0
    for agent in team.agents:
        images += find_images(team.observation_spaces[agent], start)
        start += flat_size(team.observation_spaces[agent]) + 1
    return images


def _masks(agents: list[AgentID], fragments: Sequence[JointFragment]) -> list[list[np.ndarray]]:
    """Per fragment each agent's (T, n) mask, all True where it was given none; [] if nobody ever was.

    Raises:
        ValueError: They have several sizes.
    """
    sizes = {f.action_mask[a].shape[1]: a for f in fragments for a in agents if a in f.action_mask}
    if len(sizes) > 1:
        told = ", ".join(f"{size} ({sizes[size]!r})" for size in sorted(sizes))
        raise ValueError(
            f"Action masks of agents that share a policy have several sizes: {told}. Give each one entry for "
            f"every option of the action space."
        )
    free = {len(f): np.ones((len(f) + 1, *sizes), bool) for f in fragments}
    return [[f.action_mask.get(a, free[len(f)])[:-1] for a in agents] for f in fragments] if sizes else []


def _state(fragment: JointFragment) -> np.ndarray:
    if fragment.state is None:
        raise ValueError(
            f"The fragment of episode {fragment.episode_id!r} from step {fragment.env_t} on has no `state`, "
            f"but its environment has a state space: give every fragment the states of its rows."
        )
    return fragment.state


def _one_row(state: Any) -> Any:
    return tree.map_structure(lambda x: x[None], state)


def _digest(episode_id: str) -> int:
    """The episode as a number that learners can exchange."""
    return int.from_bytes(hashlib.blake2b(episode_id.encode(), digest_size=8).digest(), "little") >> 1


def _at_end(length: int, value: bool) -> np.ndarray:
    flags = np.zeros(length, bool)
    flags[-1:] = value
    return flags
