"""Multi-agent MuJoCo: one robot, its joints dealt out to a team (gymnasium-robotics' MAMuJoCo)."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv

from rllib_haml.envs.extras import import_extra
from rllib_haml.envs.factorisations import (
    ANY_SIZE,
    check_factorisation,
    further_factorisation,
)
from rllib_haml.envs.mamujoco_observation import learn, standardised
from rllib_haml.envs.mamujoco_vector import vectorised
from rllib_haml.envs.mujoco_state import get_mujoco_state, set_mujoco_state
from rllib_haml.sampling.vector_env import VectorTeamEnv

logger = logging.getLogger(__name__)


def make(
    scenario: str = "HalfCheetah",
    agent_conf: str | None = "2x3",
    agent_obsk: int | None = 1,
    observation: str = "local",
    standardise: bool = False,
    agent_factorization: dict[str, Any] | None = None,
    **kwargs: Any,
) -> ParallelEnv:
    """A team that moves one robot; all get the robot's reward.

    Args:
        scenario: The robot; see `factorisations` for these and the next.
        agent_conf: How it is split, usually "<agents>x<joints per agent>".
        agent_obsk: How many joints away an agent sees; 0 is its own only.
        observation: "local", what `agent_obsk` says, raw; or "full", which gives every agent the
            global state followed by its own number, one-hot.
        standardise: With "full", each observation and the global state become (x − mean) / std over
            their own entries, as the reference implementation of HAPPO does it.
        agent_factorization: An own split, in place of `agent_conf`'s.
        **kwargs: `local_categories`, `global_categories`, `render_mode` and `gym_env` go to
            gymnasium-robotics, all others to the Gymnasium environment.

    Raises:
        ValueError: There is no such robot, split or observation.
        RuntimeError: The robot does not work with the installed MuJoCo.
        ModuleNotFoundError: The extra `mujoco` is not installed.
    """
    if agent_obsk is None:
        raise ValueError(
            "agent_obsk: null makes gymnasium-robotics build one single agent that moves the whole "
            "robot. For a team whose agents all see the whole state, use observation: full"
        )
    if observation not in ("local", "full"):
        raise ValueError(f'observation is {observation!r}; expected "local" or "full"')
    if standardise and observation == "local":
        raise ValueError("standardise belongs to observation: full; local observations are raw")
    if agent_factorization is None:
        check_factorisation(scenario, agent_conf)
        agent_factorization = further_factorisation(scenario, str(agent_conf))
    mamujoco = import_extra("gymnasium_robotics.envs.multiagent_mujoco.mamujoco_v1", extra="mujoco")
    _check_version(scenario)
    _log_warnings_of_mujoco()
    if "gym_env" not in kwargs and scenario != "CoupledHalfCheetah":
        kwargs.setdefault("disable_env_checker", True)
    with _alone_on_this_machine() if scenario in ANY_SIZE else contextlib.nullcontext():
        inner = mamujoco.parallel_env(
            scenario, agent_conf, agent_obsk, agent_factorization=agent_factorization, **kwargs
        )
    return MAMuJoCo(inner, full=observation == "full", standardise=standardise)


class MAMuJoCo(ParallelEnv):
    """gymnasium-robotics' environment `inner` with its overhead removed and its state exposed.

    Spaces, values and order are those of `inner`, except that agents' joints of equal name are
    ordered by their place in the robot (gymnasium-robotics leaves that to memory addresses).

    Attributes:
        routes: Where the agents' actions go, see `_routes`.
        selection: What the agents see; None if they see all or what only `inner` can compute.
        identity: (N, N), the agents' numbers one-hot if they see all, else None.
        standardise: Whether what they then see is standardised.
        robot_obs: What the whole robot's own environment observed last.
    """

    def __init__(self, inner: Any, *, full: bool = False, standardise: bool = False) -> None:
        self.inner = inner
        self.env: gym.Env = inner.single_agent_env
        self.metadata = {**inner.metadata, "name": "MAMuJoCo"}
        self.render_mode = self.env.render_mode
        self.possible_agents: list[str] = list(inner.possible_agents)
        self.agents: list[str] = []
        self.action_spaces = dict(inner.action_spaces)
        robot: Any = self.env
        self.state_space = robot.observation_space
        self.routes = _routes(inner, robot.action_space.shape[0])
        self.standardise = standardise
        self.identity = np.eye(len(self.possible_agents)) if full else None
        for joints in inner.k_dicts:
            for distance, nodes in joints.items():
                joints[distance] = sorted(nodes, key=lambda n: (n.label, n.qpos_ids, n.act_ids))
        # Not `inner._get_obs_agent`, which leaves out the clipping when it is handed the data.
        obsk = import_extra("gymnasium_robotics.envs.multiagent_mujoco.obsk", extra="mujoco")
        self._builders = [
            partial(
                obsk.build_obs,
                k_dict=joints,
                local_categories=inner.local_categories,
                global_nodes=inner.mujoco_globals,
                global_categories=inner.global_categories,
            )
            for joints in inner.k_dicts
        ]
        self.selection = None if full else learn(self._builders, robot.unwrapped.data)
        self.observation_spaces = dict(inner.observation_spaces)
        if full:
            shape = (self.state_space.shape[0] + len(self.possible_agents),)
            space = gym.spaces.Box(-np.inf, np.inf, shape, np.float64)
            self.observation_spaces = dict.fromkeys(self.possible_agents, space)
        self.robot_obs: np.ndarray = np.zeros(self.state_space.shape)

    def observation_space(self, agent: str) -> gym.Space:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.Space:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        self.robot_obs, info = self.env.reset(seed=seed, options=options)
        self.agents = self.possible_agents.copy()
        return self._observe(), dict.fromkeys(self.agents, info)

    def step(
        self, actions: dict[str, np.ndarray]
    ) -> tuple[
        dict[str, np.ndarray],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, dict[str, Any]],
    ]:
        """Raises a `ValueError` on an action that is not finite: MuJoCo would reset the robot."""
        command = np.empty(len(self.routes[1]))
        start = 0
        for agent, stop in self.routes[0]:
            command[start:stop] = actions[agent]
            start = stop
        if not (math.isfinite(command @ command) or np.isfinite(command).all()):
            raise ValueError(f"an action is not finite: {actions}")
        reward, terminated, truncated, info = self.move(command[self.routes[1]])
        team = self.possible_agents
        return (
            self._observe(),
            dict.fromkeys(team, reward),
            dict.fromkeys(team, terminated),
            dict.fromkeys(team, truncated),
            dict.fromkeys(team, info),
        )

    def move(self, command: np.ndarray) -> tuple[float, bool, bool, dict[str, Any]]:
        """Steps the robot with its own `command` (actuators,), and tells what is not an observation."""
        self.robot_obs, reward, terminated, truncated, info = self.env.step(command)
        if terminated or truncated:
            self.agents = []
        return float(reward), terminated, truncated, info

    def state(self) -> np.ndarray:
        """What the whole robot's own environment observes; standardised if the agents' is."""
        return standardised(self.robot_obs) if self.standardise else self.robot_obs

    @property
    def layout(self) -> Hashable:
        """Equal for environments whose agents act and observe in the same places."""
        places, order = self.routes
        seen = None if self.selection is None else self.selection.key
        whole = None if self.identity is None else (self.state_space.shape, self.standardise)
        return tuple(places), order.tobytes(), seen, whole

    @staticmethod
    def batch(envs: Sequence[MAMuJoCo]) -> VectorTeamEnv:
        """`envs` stepped together; see `make_vector_team_env`."""
        return vectorised(envs)

    def get_state(self) -> dict[str, Any]:
        """All that `set_state` needs to continue bit for bit, also in another process."""
        return {
            "mujoco": get_mujoco_state(self.env),
            "agents": self.agents.copy(),
            "robot_obs": self.robot_obs.copy(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from `get_state` of an environment made with the same arguments."""
        set_mujoco_state(self.env, state["mujoco"])
        self.agents = list(state["agents"])
        self.robot_obs = state["robot_obs"].copy()

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()

    def _observe(self) -> dict[str, np.ndarray]:
        robot: Any = self.env
        if self.identity is not None:
            rows = [np.concatenate([self.robot_obs, number]) for number in self.identity]
            if self.standardise:
                rows = [standardised(row) for row in rows]
        elif self.selection is not None:
            rows = self.selection(robot.unwrapped.data)
        else:
            rows = [build(robot.unwrapped.data) for build in self._builders]
        return dict(zip(self.possible_agents, rows, strict=True))


def _routes(inner: Any, actuators: int) -> tuple[list[tuple[str, int]], np.ndarray]:
    """How the agents' actions, one after another, become the robot's.

    Returns:
        Each agent with the place where its action ends, and for each actuator its place.

    Raises:
        ValueError: An actuator belongs to no agent or to two.
    """
    ids = [[node.act_ids for node in part] for part in inner.agent_action_partitions]
    order = [actuator for part in ids for actuator in part]
    if sorted(order) != list(range(actuators)):
        raise ValueError(f"the agents' actuators are {ids}; expected each of 0 to {actuators - 1} once")
    stops = np.cumsum([len(part) for part in ids]).tolist()
    return list(zip(inner.possible_agents, stops, strict=True)), np.argsort(order)


def _check_version(scenario: str) -> None:
    mujoco = import_extra("mujoco", extra="mujoco")
    version: Sequence[int] = [int(part) for part in mujoco.__version__.split(".")[:2]]
    if scenario == "CoupledHalfCheetah" and tuple(version) >= (3, 6):
        raise RuntimeError(
            "CoupledHalfCheetah of gymnasium-robotics reads tendons in a layout that MuJoCo gave up "
            f'in 3.6; installed is {mujoco.__version__}: pip install "mujoco<3.6"'
        )


def _log_warnings_of_mujoco() -> None:
    """Sends MuJoCo's warnings to `logging`: it would write MUJOCO_LOG.TXT where the user stands."""
    mujoco = import_extra("mujoco", extra="mujoco")
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_log_warning)


def _log_warning(message: str) -> None:
    # HalfCheetah's own model uses this deprecated attribute; nobody can do anything about it.
    if "settotalmass" not in message:
        logger.warning("MuJoCo: %s", message)


@contextlib.contextmanager
def _alone_on_this_machine() -> Iterator[None]:
    """Lets one process at a time in.

    gymnasium-robotics writes a many-segment robot's XML under a fixed name, reads it and removes
    it; two processes that do so at once lose it to each other.
    """
    path = os.path.join(tempfile.gettempdir(), f"rllib_haml_mamujoco_{os.getuid()}.lock")
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
