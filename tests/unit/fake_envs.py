"""Environments that do exactly what a script says, once for RLlib and once for PettingZoo.

Everything that they return tells where it comes from: an observation is (agent, episode, step)
followed by zeros, a reward is a number that no other (agent, episode, step) gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv
from ray.rllib.env.multi_agent_env import MultiAgentEnv

NAMES = ("scout", "carrier", "anchor")  # not in alphabetical order, which a set or sort would give


@dataclass(frozen=True)
class Script:
    """What happens in every episode.

    Attributes:
        agents: The team, in declared order. Agent i observes 3 + i numbers; its actions are
            Discrete(2 + i) if i is even, else Box (i,).
        length: Steps of an episode.
        end: How it ends: in a terminal state, by a time limit, or by a time limit with both flags
            set on the last step, as many RLlib environments do it.
        deaths: Step at which an agent terminates itself.
        joins: Step at which an agent first appears; others are there from the reset on.
        skips: Steps at which an agent gets no observation (RLlib only).
        reward_the_dead: Whether agents keep their reward after their death.
        equal_rewards: Whether all agents get what the first one gets.
        nan_obs: (agent, step) of an observation that holds a NaN.
        nan_reward: (agent, step) of a reward that is NaN.
        no_reward: (agent, step) of a reward that is left out.
        wrong_shape: (agent, step) of an observation with one number too many.
        stranger: Step at which an undeclared agent gets an observation.
        outcomes: Agents whose infos in the last step tell the episode's outcome: "win" in every other
            episode, and its "number".
        raises: (episode, step) in which the environment raises; step 0 is its reset.
    """

    agents: tuple[str, ...] = NAMES
    length: int = 5
    end: Literal["terminated", "truncated", "both"] = "truncated"
    deaths: Mapping[str, int] = field(default_factory=dict)
    joins: Mapping[str, int] = field(default_factory=dict)
    skips: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    reward_the_dead: bool = False
    equal_rewards: bool = False
    nan_obs: tuple[str, int] | None = None
    nan_reward: tuple[str, int] | None = None
    no_reward: tuple[str, int] | None = None
    wrong_shape: tuple[str, int] | None = None
    stranger: int | None = None
    outcomes: tuple[str, ...] = ()
    raises: tuple[int, int] | None = None

    def observation_space(self, agent: str) -> gym.Space:
        return gym.spaces.Box(-1e6, 1e6, (3 + self.agents.index(agent),), np.float64)

    def action_space(self, agent: str) -> gym.Space:
        i = self.agents.index(agent)
        return gym.spaces.Box(-1, 1, (i,), np.float32) if i % 2 else gym.spaces.Discrete(2 + i)

    def obs(self, agent: str, episode: int, step: int) -> np.ndarray:
        """What `agent` sees after `step` steps of `episode`."""
        i = self.agents.index(agent)
        length = 3 + i + (self.wrong_shape == (agent, step))
        obs = np.zeros(length)
        obs[:3] = i, episode, step
        if self.nan_obs == (agent, step):
            obs[1] = np.nan
        return obs

    def reward(self, agent: str, episode: int, step: int) -> float:
        """What `agent` receives for `step` (from 1) of `episode`."""
        if self.nan_reward == (agent, step):
            return float("nan")
        i = 0 if self.equal_rewards else self.agents.index(agent)
        return i + 10.0 * step + 1000.0 * episode

    def is_there(self, agent: str, step: int) -> bool:
        """Whether `agent` is alive after `step` steps."""
        return self.joins.get(agent, 0) <= step < self.deaths.get(agent, step + 1)

    def observed(self, episode: int, step: int) -> dict[str, Any]:
        """All observations after `step` steps; those who die now still get one."""
        obs = {
            agent: self.obs(agent, episode, step)
            for agent in reversed(self.agents)  # dicts need not be in declared order
            if (self.is_there(agent, step) or self.deaths.get(agent) == step)
            and step not in self.skips.get(agent, ())
        }
        if self.stranger == step:
            obs["stranger"] = np.zeros(3)
        return obs

    def infos(self, agents: Iterable[str], episode: int, step: int) -> dict[str, dict[str, Any]]:
        told = {"outcome": {"win": float(episode % 2), "number": episode}}
        return {a: told if step == self.length and a in self.outcomes else {} for a in agents}

    def rewarded(self, episode: int, step: int) -> dict[str, float]:
        return {
            agent: self.reward(agent, episode, step)
            for agent in self.agents
            if (self.is_there(agent, step - 1) or (self.reward_the_dead and step > 1))
            and self.joins.get(agent, 0) < step
            and self.no_reward != (agent, step)
        }


class _Scripted:
    """The clock that both environments share; the actions of each step are kept for the tests."""

    script: Script
    episode = -1
    time = 0
    seed: int | None = None

    def _begin(self, seed: int | None) -> dict[str, Any]:
        self.episode, self.time, self.seed = self.episode + 1, 0, seed
        self.taken: list[dict[str, Any]] = []
        return self._look()

    def _advance(self, actions: dict[str, Any]) -> dict[str, Any]:
        self.time += 1
        self.taken.append(dict(actions))
        return self._look()

    def _look(self) -> dict[str, Any]:
        if self.script.raises == (self.episode, self.time):
            raise OSError("the simulator lost its licence")
        return self.script.observed(self.episode, self.time)

    def _dead_now(self) -> list[str]:
        return [agent for agent, step in self.script.deaths.items() if step == self.time]

    def get_state(self) -> dict[str, Any]:
        return {"episode": self.episode, "time": self.time, "agents": list(self.agents)}

    def set_state(self, state: dict[str, Any]) -> None:
        self.episode, self.time = state["episode"], state["time"]
        self.agents = list(state["agents"])
        self.taken = []


class ScriptedMultiAgentEnv(_Scripted, MultiAgentEnv):
    """The script as RLlib sees it. Both flags of a time limit are set where `end` says "both"."""

    def __init__(self, config: Mapping[str, Any] | None = None, **script: Any) -> None:
        self.script = Script(**{**(config or {}), **script})
        self.possible_agents = list(self.script.agents)
        self.agents = list(self.script.agents)
        super().__init__()
        self.observation_spaces = {a: self.script.observation_space(a) for a in self.agents}
        self.action_spaces = {a: self.script.action_space(a) for a in self.agents}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        obs = self._begin(seed)
        self.agents = list(obs)
        return obs, {}

    def step(self, action_dict: dict[str, Any]) -> Any:
        obs = self._advance(action_dict)
        over, end = self.time == self.script.length, self.script.end
        terminateds: dict[str, bool] = dict.fromkeys(self._dead_now(), True)
        terminateds["__all__"] = over and end in ("terminated", "both")
        truncateds = {"__all__": over and end in ("truncated", "both")}
        self.agents = [a for a in self.script.agents if self.script.is_there(a, self.time)]
        rewards = self.script.rewarded(self.episode, self.time)
        infos = self.script.infos(obs, self.episode, self.time)
        return obs, rewards, terminateds, truncateds, infos


class ScriptedParallelEnv(_Scripted, ParallelEnv):
    """The script as PettingZoo sees it, with a global state (episode, step, number alive)."""

    state_space: gym.Space | None = gym.spaces.Box(-1e6, 1e6, (3,), np.float64)
    render_mode = None

    def __init__(self, config: Mapping[str, Any] | None = None, **script: Any) -> None:
        self.script = Script(**{**(config or {}), **script})
        self.metadata = {"name": "scripted"}
        self.possible_agents = list(self.script.agents)
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> gym.Space:
        return self.script.observation_space(agent)

    def action_space(self, agent: str) -> gym.Space:
        return self.script.action_space(agent)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        obs = self._begin(seed)
        self.agents = [agent for agent in obs if agent in self.possible_agents]
        return obs, {agent: {} for agent in obs}

    def step(self, actions: dict[str, Any]) -> Any:
        obs = self._advance(actions)
        over, end = self.time == self.script.length, self.script.end
        dead = self._dead_now()
        terminations = {a: a in dead or (over and end == "terminated") for a in obs}
        truncations = {a: over and end != "terminated" and a not in dead for a in obs}
        there = [a for a in self.script.agents if self.script.is_there(a, self.time)]
        self.agents = [] if over else there
        rewards = self.script.rewarded(self.episode, self.time)
        infos = self.script.infos(obs, self.episode, self.time)
        return obs, rewards, terminations, truncations, infos

    def state(self) -> np.ndarray:
        alive = sum(self.script.is_there(agent, self.time) for agent in self.script.agents)
        return np.array([self.episode, self.time, alive], np.float64)


class MemoryGame(MultiAgentEnv):
    """Each agent is shown a cue at the first step and must name it at the last; between, all look alike.

    The team's reward is the share of agents that are right: 0.5 by chance, 1 by memory. It can be saved.
    """

    LENGTH = 5

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.possible_agents = self.agents = ["left", "right"]
        super().__init__()
        box, choice = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)
        self.observation_spaces = dict.fromkeys(self.agents, box)
        self.action_spaces = dict.fromkeys(self.agents, choice)
        self._rng = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._time, self._cue = 0, self._rng.integers(2, size=2)
        return self._obs(), {}

    def _obs(self) -> dict[str, np.ndarray]:
        shown = 2.0 * self._cue - 1 if self._time == 0 else np.zeros(2)
        time = self._time / self.LENGTH
        return {a: np.array([x, time], np.float32) for a, x in zip(self.agents, shown, strict=True)}

    def step(self, action_dict: dict[str, Any]) -> Any:
        self._time += 1
        over = self._time == self.LENGTH
        right = [action_dict[a] == x for a, x in zip(self.agents, self._cue, strict=True)]
        rewards = dict.fromkeys(self.agents, float(np.mean(right)) if over else 0.0)
        return self._obs(), rewards, {"__all__": over}, {"__all__": False}, {}

    def get_state(self) -> dict[str, Any]:
        return {"time": self._time, "cue": self._cue.copy(), "rng": self._rng.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        self._time, self._cue = state["time"], np.array(state["cue"])
        self._rng.bit_generator.state = state["rng"]


def action_script(env: Any, episode: int, step: int) -> dict[str, Any]:
    """A valid action for each agent of `env`, a function of (agent, episode, step) alone."""
    actions: dict[str, Any] = {}
    for i, agent in enumerate(env.script.agents):
        space = env.script.action_space(agent)
        phase = 7 * i + 5 * episode + step
        if isinstance(space, gym.spaces.Discrete):
            actions[agent] = phase % int(space.n)
        else:
            actions[agent] = np.full(space.shape, np.sin(phase), np.float32)
    return actions
