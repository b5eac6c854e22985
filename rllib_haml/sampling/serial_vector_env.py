"""E single environments as one `VectorTeamEnv`: a Python loop that writes into shared arrays.

This loop is the hot path of sampling, so it allocates nothing that it can keep and checks with
operations that cost tens of nanoseconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_haml._typing import AgentID
from rllib_haml.sampling.actions import sub_env_actions
from rllib_haml.sampling.bounds import BoundsCheck
from rllib_haml.sampling.columns import ObsColumn
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.masks import ActionMasks
from rllib_haml.sampling.outcomes import outcome_of
from rllib_haml.sampling.rewards import reward_row
from rllib_haml.sampling.team_env import TeamEnv, TimeStep
from rllib_haml.sampling.vector_env import TeamStep

logger = logging.getLogger("rllib_haml")


class SerialVectorTeamEnv:
    """Steps `teams`, which must be of one kind, one after another.

    Beyond `VectorTeamEnv`:

    - The observation of an agent that is not active is zeros, its mask all True.
    - A reward given to an agent that did not act (one that died before) is kept in its column.
    - A sub-environment whose episode has ended is not stepped until it is reset; its reward is 0.
    - Where an environment cannot tell its state in its last step, the state before it stays.
    - One that fails does not keep the others from their step: the fault is raised when all have taken it.

    Attributes:
        episode_steps: (E,) int64, steps that each episode has taken.
        has_state: Whether `get_state` and `set_state` work: every environment has its own.
    """

    def __init__(self, teams: Sequence[TeamEnv], make: Callable[[], TeamEnv] | None = None) -> None:
        first, self._make = teams[0], make
        self._teams = tuple(teams)
        self.name = first.name
        self.num_envs = len(teams)
        self.agents: tuple[AgentID, ...] = first.agents
        for row, team in enumerate(teams):
            if team.agents != first.agents:
                raise EnvironmentFault(
                    f"its agents {list(team.agents)} are not those of sub-environment 0, "
                    f"{list(first.agents)}",
                    environment=team.name,
                    sub_env=row,
                )
        self.observation_spaces: dict[AgentID, gym.Space] = first.observation_spaces
        self.action_spaces: dict[AgentID, gym.Space] = first.action_spaces
        self.state_space: gym.Space | None = first.state_space
        self.episode_steps = np.zeros(self.num_envs, np.int64)
        self.has_state = all(team.has_state for team in teams)
        self._columns = {
            agent: ObsColumn(space, self.num_envs) for agent, space in self.observation_spaces.items()
        }
        self._masks = ActionMasks(self.observation_spaces, self.action_spaces, self.num_envs)
        self._feeds = {agent: sub_env_actions(space) for agent, space in self.action_spaces.items()}
        self._check_bounds = BoundsCheck(self.name, self.observation_spaces)
        self._acting: list[Sequence[AgentID]] = [()] * self.num_envs
        self._running = [False] * self.num_envs
        self._never_seen = set(self.agents)

        shape = (self.num_envs, len(self.agents))
        self._step = TeamStep(
            obs={agent: column.value for agent, column in self._columns.items()},
            active=np.zeros(shape, bool),
            reward=np.zeros(shape, np.float64),
            terminated=np.zeros(self.num_envs, bool),
            truncated=np.zeros(self.num_envs, bool),
            action_mask=self._masks.value,
            state=(
                None
                if first.state_space is None
                else np.zeros((self.num_envs, *first.state_space.shape), np.float32)
            ),
        )

    def reset(self, rows: Sequence[int], seeds: Sequence[int | None]) -> TeamStep:
        """See `VectorTeamEnv.reset`.

        Raises:
            EnvironmentFault: An environment raised, or what it returned breaks its interface.
        """
        faults: list[EnvironmentFault] = []
        for row, seed in zip(rows, seeds, strict=True):
            self.episode_steps[row] = 0
            try:
                self._write(row, self._teams[row].reset(seed), acted=())
            except Exception as error:
                faults.append(self._fault(error, "reset", row))
        raise_first(faults)
        self._check_bounds(self._step)
        return self._step

    def step(self, actions: Mapping[AgentID, Any]) -> TeamStep:
        """See `VectorTeamEnv.step`.

        Raises:
            EnvironmentFault: An environment raised, or what it returned breaks its interface.
        """
        feeds = {agent: self._feeds[agent](batch) for agent, batch in actions.items()}
        faults: list[EnvironmentFault] = []
        for row, team in enumerate(self._teams):
            if not self._running[row]:
                self._step.reward[row] = 0.0
                continue
            self.episode_steps[row] += 1
            acted = self._acting[row]
            try:
                self._write(row, team.step({agent: feeds[agent][row] for agent in acted}), acted)
            except Exception as error:
                faults.append(self._fault(error, "step", row))
        raise_first(faults)
        self._check_bounds(self._step)
        return self._step

    def renew(self, rows: Sequence[int]) -> None:
        """Puts new environments in place of `rows`, which have failed; they are to be reset.

        Those that were not told how to make one keep what they have.
        """
        if self._make is None:
            return
        teams = list(self._teams)
        for row in rows:
            try:
                teams[row].env.close()
            except Exception as error:
                logger.warning("%s, sub-environment %d: close() failed: %s", self.name, row, error)
            teams[row] = self._make()
        self._teams = tuple(teams)

    def close(self) -> None:
        for team in self._teams:
            team.env.close()

    def get_state(self) -> list[dict[str, Any]]:
        """The state of every sub-environment, its present row of the `TeamStep` included.

        Raises:
            NotImplementedError: The environments have no state to give (`has_state` is False).
        """
        self._demand_state()
        return [
            {
                "team": team.get_state(),
                "obs": {agent: column.read(row) for agent, column in self._columns.items()},
                "mask": self._masks.read(row),
                "arrays": {name: array[row].copy() for name, array in self._row_arrays()},
                "acting": list(self._acting[row]),
                "running": self._running[row],
                "outcome": self._step.outcome_of(row),
                "never_seen": sorted(self._never_seen, key=self.agents.index),
            }
            for row, team in enumerate(self._teams)
        ]

    def set_state(self, states: Sequence[Mapping[str, Any]]) -> TeamStep:
        """Continues from what `get_state` gave; returns the step that was current then.

        Raises:
            NotImplementedError: The environments have no state (`has_state` is False).
            ValueError: `states` are of another number of sub-environments.
        """
        self._demand_state()
        if len(states) != self.num_envs:
            raise ValueError(f"a state of {len(states)} sub-environments cannot be set on {self.num_envs}")
        for row, (team, state) in enumerate(zip(self._teams, states, strict=True)):
            team.set_state(state["team"])
            for agent, arrays in state["obs"].items():
                self._columns[agent].restore(row, arrays)
            self._masks.restore(row, state["mask"])
            for name, array in self._row_arrays():
                array[row] = state["arrays"][name]
            self._acting[row] = tuple(state["acting"])
            self._running[row] = state["running"]
            self._write_outcome(row, state.get("outcome", {}))  # older states have none
            self._never_seen.intersection_update(state["never_seen"])
        return self._step

    def _write(self, row: int, now: TimeStep, acted: Sequence[AgentID]) -> None:
        """Copies what one environment shows into its row."""
        obs, acting, _, terminated, truncated, infos = now
        step = self._step
        step.reward[row] = reward_row(self.agents, now, acted)
        # Adapters return the same object as long as the same agents act.
        if acting is not self._acting[row]:
            step.active[row] = [agent in acting for agent in self.agents]
            for agent, column in self._columns.items():
                if agent not in acting:
                    column.clear(row)
            self._acting[row] = acting
        self._write_obs(row, acting, obs)
        over = terminated or truncated
        if over or not acted:
            step.terminated[row] = terminated
            step.truncated[row] = truncated
            self._running[row] = not over
        if over:
            self._write_outcome(row, outcome_of(infos))
        if self._masks:
            self._masks.write(row, acting, obs, infos)
        if step.state is not None:
            self._write_state(row, step.state)
        if self._never_seen:
            self._take_note(acting, over)

    def _write_obs(self, row: int, acting: Sequence[AgentID], obs: Mapping[AgentID, Any]) -> None:
        for agent in acting:
            try:
                self._columns[agent].write(row, obs[agent])
            except KeyError:
                raise EnvironmentFault("it is to act but got no observation", agent=agent) from None
            except EnvironmentFault as fault:
                fault.agent = agent
                raise

    def _write_outcome(self, row: int, told: Mapping[str, float]) -> None:
        for name in told:
            self._step.outcome.setdefault(name, np.full(self.num_envs, np.nan))
        for name, values in self._step.outcome.items():
            values[row] = told.get(name, np.nan)

    def _write_state(self, row: int, states: np.ndarray) -> None:
        state = self._teams[row].state()
        if state is None:
            return
        if np.shape(state) != states.shape[1:]:
            raise EnvironmentFault(f"state() has shape {np.shape(state)}, its space says {states.shape[1:]}")
        states[row] = state

    def _take_note(self, acting: Sequence[AgentID], over: bool) -> None:
        """Keeps the book of who has ever acted; a whole episode is long enough to appear."""
        self._never_seen.difference_update(acting)
        if over and self._never_seen:
            agent = next(a for a in self.agents if a in self._never_seen)
            raise EnvironmentFault(
                "possible_agents declares it, but it did not appear in a whole episode", agent=agent
            )

    def _row_arrays(self) -> list[tuple[str, np.ndarray]]:
        step = self._step
        arrays = [
            ("active", step.active),
            ("reward", step.reward),
            ("terminated", step.terminated),
            ("truncated", step.truncated),
            ("episode_steps", self.episode_steps),
        ]
        return arrays if step.state is None else [*arrays, ("state", step.state)]

    def _demand_state(self) -> None:
        if not self.has_state:
            raise NotImplementedError(
                f"{self.name} has no get_state() and set_state(); its episodes cannot be continued"
            )

    def _fault(self, error: Exception, method: str, row: int) -> EnvironmentFault:
        told = error
        if not isinstance(told, EnvironmentFault):
            told = EnvironmentFault(f"it raised {type(error).__name__}: {error}")
        fault = told.at(
            environment=self.name,
            method=method,
            sub_env=row,
            step=int(self.episode_steps[row]),
        )
        # Not the same fault again without its place, which would be read first.
        fault.__cause__ = error.__cause__ if told is error else error
        return fault


def raise_first(faults: list[EnvironmentFault]) -> None:
    """The first of `faults`, which knows the others."""
    if faults:
        first, *others = faults
        first.others = tuple(others)
        raise first
