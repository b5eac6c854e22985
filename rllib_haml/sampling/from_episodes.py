"""RLlib's MultiAgentEpisodes as JointFragments: the stock sampler's way in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tree
from gymnasium import spaces
from ray.rllib.core.columns import Columns
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from rllib_haml._typing import AgentID
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.fragment import JointFragment
from rllib_haml.sampling.masks import MaskCheck, nothing_allowed
from rllib_haml.sampling.outcomes import outcome_of
from rllib_haml.sampling.seen import SEEN, Seen
from rllib_haml.sampling.spaces import as_float32, holds_action_mask, leaves, zeros
from rllib_haml.sampling.team import Team

# Under this key an agent's info carries the environment's global state.
STATE = "state"


def as_fragments(samples: Sequence[Any], config: Any) -> list[JointFragment]:
    """Samples of either env runner as fragments.

    Raises:
        TypeError: If a sample is neither a JointFragment nor a MultiAgentEpisode.
    """
    fragments = []
    for index, sample in enumerate(samples):
        if isinstance(sample, JointFragment):
            fragments.append(sample)
        elif isinstance(sample, MultiAgentEpisode):
            fragments.append(from_episode(sample, config.team, source=(0, index)))
        else:
            raise TypeError(
                f"The env runner {config.env_runner_cls.__name__} returned a {type(sample).__name__}: "
                f"expected MultiAgentEpisodes or JointFragments."
            )
    return fragments


def from_episode(episode: MultiAgentEpisode, team: Team, source: tuple[int, int]) -> JointFragment:
    """One chunk of an episode in which all agents act at the same time.

    Observations are those that policies saw, where connectors of the user's change them (`RecordSeen`).

    On a time limit RLlib sets both end flags of every agent; both therefore mean a time limit, unless the
    agents' infos say `terminal: True`. Of an agent that joins in the last row of a cut chunk RLlib keeps
    nothing there: it counts as absent in that row, and begins in the next chunk.

    Args:
        source: Stands for (env runner, sub-environment), which episodes do not tell.

    Raises:
        ValueError: If the environment gives a state and the episode's infos do not hold it, or the infos
            hold an action mask, or an agent was not observed where the chunk was cut, or followed another
            policy than the team's.
        EnvironmentFault: If a mask allowed an acting agent nothing, or agents tell no one outcome.
    """
    _refuse_masks_in_infos(episode, team)
    _refuse_other_policies(episode, team)
    length = len(episode)
    terminated, truncated = _ends(episode)
    columns = {agent: _AgentRows(episode, agent, length, terminated) for agent in team.agents}
    reward = np.stack([c.reward() for c in columns.values()], axis=-1)
    return JointFragment(
        obs={a: c.obs(team.observation_spaces[a]) for a, c in columns.items()},
        actions={a: c.actions(team.action_spaces[a]) for a, c in columns.items()},
        logp={a: c.logp() for a, c in columns.items()},
        active={a: c.active for a, c in columns.items()},
        action_mask=_masks(columns, team, episode.env_t_started),
        state=None if team.state_space is None else _states(columns, team.state_space, length),
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        episode_id=episode.id_,
        env_t=episode.env_t_started,
        source=source,
        weights_seq_no=0,
        outcome=outcome_of({a: c.infos().get(length) for a, c in columns.items()}) if episode.is_done else {},
        actor_state={
            a: _state_before(agent) for a, agent in episode.agent_episodes.items() if _goes_on(agent)
        },
    )


def _goes_on(agent: SingleAgentEpisode) -> bool:
    """Whether a recurrent policy began this chunk with a state from before."""
    return agent.t_started > 0 and Columns.STATE_OUT in agent.extra_model_outputs


def _state_before(agent: SingleAgentEpisode) -> Any:
    """The recurrent state after the last step before the chunk, a tree of arrays."""
    if not agent.extra_model_outputs[Columns.STATE_OUT].lookback:
        raise unanswered(agent.agent_id)
    return agent.get_extra_model_outputs(Columns.STATE_OUT, indices=-1, neg_index_as_lookback=True)


def _refuse_masks_in_infos(episode: MultiAgentEpisode, team: Team) -> None:
    """RLlib's sampler shows a policy its observation alone: a mask beside it was not obeyed."""
    for agent_id, agent in episode.agent_episodes.items():
        in_observation = holds_action_mask(team.observation_spaces[agent_id], team.action_spaces[agent_id])
        if not in_observation and any("action_mask" in info for info in agent.get_infos()):
            raise ValueError(
                f"Agent {agent_id!r} has its action mask in infos, which RLlib's MultiAgentEnvRunner does "
                f"not obey: put it into a Dict observation under 'action_mask', or do without what needs "
                f"that env runner (the log says what)."
            )


def _refuse_other_policies(episode: MultiAgentEpisode, team: Team) -> None:
    """An env runner or callback of the user's may have mapped the episode's agents by itself."""
    for agent_id, agent in episode.agent_episodes.items():
        if agent.module_id != team.module_of[agent_id]:
            raise ValueError(
                f"Agent {agent_id!r} followed the policy {agent.module_id!r} in an episode, but "
                f"{team.module_of[agent_id]!r} was decided on for the whole training: let the env runner or "
                f"callback that mapped it leave `policy_mapping_fn` of the config as it is."
            )


def _ends(episode: MultiAgentEpisode) -> tuple[bool, bool]:
    """(terminated, truncated) of the team's episode, never both."""
    if not episode.is_done:
        return False, False
    ends = episode.agent_episodes.values()
    truncated = episode.is_truncated or any(agent.is_truncated for agent in ends)
    if not (episode.is_terminated and truncated):
        return bool(episode.is_terminated), bool(truncated)
    terminal = any(bool(agent.get_infos(-1).get("terminal")) for agent in ends)
    return terminal, not terminal


class _AgentRows:
    """One agent's part of a chunk: which env step each of its rows belongs to.

    RLlib adds up what an agent is given until it is observed again: the sum lies in the row of its action.

    Attributes:
        active: (T+1,) bool.
    """

    def __init__(self, episode: MultiAgentEpisode, agent: AgentID, length: int, terminated: bool):
        self.length = length
        self._seen: Seen | None = episode.custom_data.get(SEEN)
        self._agent = episode.agent_episodes.get(agent)
        if agent in episode._hanging_actions_end:
            raise unanswered(agent)
        self.active = np.zeros(length + 1, bool)
        self._rows = np.zeros(0, int)
        self._followed = False
        if self._agent is None:
            return
        steps = episode.env_t_to_agent_t[agent]
        data: Any = steps.data
        own, started = list(data), episode.agent_t_started[agent]
        count = len(self._agent)
        self._rows = np.array([own.index(started + k) - steps.lookback for k in range(count)], int)
        if (self._rows < 0).any():
            raise unanswered(agent)
        self.active[self._rows] = True
        # Its last observation lies in row T unless it left the team earlier.
        followed = (started + count) in own and own.index(started + count) - steps.lookback == length
        only_it_ended = self._agent.is_terminated and not self._agent.is_truncated and not terminated
        self._followed = followed and not only_it_ended
        self.active[length] = self._followed

    def obs(self, space: spaces.Space) -> Any:
        def fill(leaf: np.ndarray) -> np.ndarray:
            out = np.zeros((self.length + 1, *leaf.shape[1:]), leaf.dtype)
            out[self._rows] = leaf[: len(self._rows)]
            if self._followed:
                out[-1] = leaf[len(self._rows)]
            return out

        wanted = as_float32(space)
        if self._agent is None:
            return zeros(wanted, self.length + 1)
        count = len(self._rows) + 1
        if self._seen is None:
            seen = [self._agent.get_observations(k) for k in range(count)]
        else:
            started = self._agent.t_started
            seen = self._seen.of(self._agent.agent_id, range(started, started + count))
        return tree.map_structure(fill, _batched(wanted, seen))

    def actions(self, space: spaces.Space) -> Any:
        return self._acted(space, [] if self._agent is None else self._agent.get_actions())

    def logp(self) -> np.ndarray:
        values = [] if self._agent is None else self._agent.get_extra_model_outputs(Columns.ACTION_LOGP)
        out = np.zeros(self.length, np.float32)
        # Without exploration RLlib's distribution is a point, whose logp has one 0 per action component.
        out[self._rows] = np.sum(values, axis=tuple(range(1, np.ndim(values))))
        return out

    def reward(self) -> np.ndarray:
        out = np.zeros(self.length)
        out[self._rows] = [] if self._agent is None else self._agent.get_rewards()
        return out

    def infos(self) -> dict[int, Mapping[str, Any]]:
        """Per row (T for what follows the last) the agent's info."""
        if self._agent is None:
            return {}
        rows = [*self._rows.tolist(), self.length][: len(self._rows) + self._followed]
        return {row: self._agent.get_infos(k) for k, row in enumerate(rows)}

    def _acted(self, space: spaces.Space, values: Any) -> Any:
        def fill(leaf: np.ndarray) -> np.ndarray:
            out = np.zeros((self.length, *leaf.shape[1:]), leaf.dtype)
            out[self._rows] = leaf
            return out

        if self._agent is None:
            return zeros(space, self.length)
        rows = values if isinstance(values, list) else tree.map_structure(np.asarray, values)
        return tree.map_structure(fill, _batched(space, rows) if isinstance(rows, list) else rows)


def unanswered(agent: AgentID) -> ValueError:
    return ValueError(
        f"RLlib's MultiAgentEnvRunner cut an episode while agent {agent!r} was not observed, and lost what "
        f"it did last: set batch_mode='complete_episodes', or do without what needs that env runner (the log "
        f"says what)."
    )


def _batched(space: spaces.Space, rows: Sequence[Any]) -> Any:
    """A list of elements of `space` as one tree of arrays."""
    if isinstance(space, spaces.Dict):
        return {key: _batched(sub, [row[key] for row in rows]) for key, sub in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_batched(sub, [row[i] for row in rows]) for i, sub in enumerate(space))
    dtype = np.int64 if isinstance(space, spaces.Discrete) else space.dtype
    if misfit := leaves(space)[0].misfit(rows):
        raise EnvironmentFault(f"an agent's {misfit}")
    return np.asarray(rows, dtype).reshape(len(rows), *(space.shape or ()))


def _masks(columns: Mapping[AgentID, _AgentRows], team: Team, env_t: int) -> dict[AgentID, np.ndarray]:
    """Per agent with a mask (T+1, n_i) bool; all True where it is absent."""
    check, masks = MaskCheck(team.action_spaces), {}
    for agent, column in columns.items():
        space = team.observation_spaces[agent]
        if holds_action_mask(space, team.action_spaces[agent]):
            mask = column.obs(space)["action_mask"].astype(bool) | ~column.active[:, None]
            stuck = check.forbid_everything(agent, mask[:-1])
            if stuck.any():
                raise nothing_allowed(agent, env_t + int(stuck.argmax()))
            masks[agent] = mask
    return masks


def _states(columns: Mapping[AgentID, _AgentRows], space: spaces.Space, length: int) -> np.ndarray:
    out, missing = np.zeros((length + 1, *(space.shape or ())), np.float32), np.ones(length + 1, bool)
    for column in columns.values():
        for row, info in column.infos().items():
            if STATE in info:
                out[row], missing[row] = info[STATE], False
    if missing.any():
        raise ValueError(
            f"No agent's info holds the environment's state (key {STATE!r}) in row {int(missing.argmax())}: "
            f"put it into every agent's info, or let the environment give no `state_space`."
        )
    return out
