"""Several MAMuJoCo environments stepped as one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rllib_haml._typing import AgentID
from rllib_haml.envs.mamujoco_observation import standardised
from rllib_haml.sampling.pettingzoo_team import PettingZooTeam
from rllib_haml.sampling.serial_vector_env import SerialVectorTeamEnv, raise_first
from rllib_haml.sampling.vector_env import TeamStep

if TYPE_CHECKING:
    from rllib_haml.envs.mamujoco import MAMuJoCo


def vectorised(robots: Sequence[MAMuJoCo]) -> SerialVectorTeamEnv:
    """`robots` as one: batched where they are laid out alike and no observation is built in Python."""
    teams = [PettingZooTeam(robot) for robot in robots]
    first = robots[0]
    built = first.selection is None and first.identity is None
    if built or any(robot.layout != first.layout for robot in robots):
        return SerialVectorTeamEnv(teams)
    return MAMuJoCoVector(teams, robots)


class MAMuJoCoVector(SerialVectorTeamEnv):
    """Equals the serial adapter of the same `teams` bit for bit, its state and faults included.

    All actions reach the robots, and all observations leave them, as one array. Whatever is not the
    rule (a sub-environment that waits for its reset, an action that is not finite) is left to the
    serial adapter.

    Args:
        teams: One adapter for each of `robots`.
        robots: Environments of one `layout`.
    """

    def __init__(self, teams: Sequence[PettingZooTeam], robots: Sequence[MAMuJoCo]) -> None:
        super().__init__(teams)
        self._robots = tuple(robots)
        # Not their `data`, which an environment may replace.
        self._simulators: list[Any] = [robot.env.unwrapped for robot in robots]
        first = robots[0]
        self._places, self._order = first.routes
        self._selection, self._standardise = first.selection, first.standardise
        if first.identity is not None:
            team, width = len(first.identity), first.state_space.shape[0]
            self._full = np.zeros((team, self.num_envs, width + team))
            self._full[:, :, width:] = first.identity[:, None]

    def step(self, actions: Mapping[AgentID, Any]) -> TeamStep:
        """See `SerialVectorTeamEnv.step`."""
        commands = self._commands(actions)
        if not (all(self._running) and math.isfinite(np.vdot(commands, commands))):
            return super().step(actions)
        step, rewards, faults = self._step, np.zeros(self.num_envs), []
        self.episode_steps += 1
        for row, robot in enumerate(self._robots):
            try:
                rewards[row], terminated, truncated, _ = robot.move(commands[row])
            except Exception as error:
                faults.append(self._fault(error, "step", row))
                continue
            if terminated or truncated:
                self._running[row] = False
                step.terminated[row], step.truncated[row] = terminated, not terminated
        step.reward[:] = rewards[:, None]
        self._observe()
        raise_first(faults)
        return step

    def _commands(self, actions: Mapping[AgentID, Any]) -> np.ndarray:
        """(E, actuators) float64, in the robot's order."""
        rows = np.empty((self.num_envs, len(self._order)))
        start = 0
        for agent, stop in self._places:
            rows[:, start:stop] = actions[agent]
            start = stop
        return rows.take(self._order, axis=1)

    def _observe(self) -> None:
        """Writes what all agents see, and the state."""
        robots = np.array([robot.robot_obs for robot in self._robots])
        if self._selection is not None:
            seen = self._selection.rows([simulator.data for simulator in self._simulators])
        else:
            self._full[:, :, : robots.shape[1]] = robots
            seen = standardised(self._full) if self._standardise else self._full
        for value, rows in zip(self._step.obs.values(), seen, strict=True):
            value[:] = rows
        assert self._step.state is not None
        self._step.state[:] = standardised(robots) if self._standardise else robots
