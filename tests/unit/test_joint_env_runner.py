"""The fast sampler's episodes: as many as asked for, whole, and no two with the same beginning."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from pettingzoo import ParallelEnv

from rllib_haml import HAPPOConfig
from rllib_haml.sampling.joint_env_runner import CHUNK, JointEnvRunner


class Lottery(ParallelEnv):
    """One agent that sees a number drawn at each reset; it can be saved."""

    def __init__(self, length: int = 3) -> None:
        self.metadata = {"name": "lottery"}
        self.possible_agents = ["only"]
        self.agents: list[str] = []
        self._rng, self._length = np.random.default_rng(0), length

    def observation_space(self, agent: str) -> gym.Space:
        return gym.spaces.Box(0, 1, (1,), np.float32)

    def action_space(self, agent: str) -> gym.Space:
        return gym.spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self.agents, self._time = ["only"], 0
        self._number = self._rng.random(1).astype(np.float32)
        return {"only": self._number}, {"only": {}}

    def step(self, actions: dict[str, Any]) -> Any:
        self._time += 1
        over = {"only": self._time == self._length}
        self.agents = [] if over["only"] else self.agents
        return {"only": self._number}, {"only": 1.0}, {"only": False}, over, {"only": {}}

    def get_state(self) -> dict[str, Any]:
        return {
            "vars": {k: v for k, v in vars(self).items() if k != "_rng"},
            "rng": self._rng.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        vars(self).update(state["vars"])
        self._rng.bit_generator.state = state["rng"]


def runner(worker_index: int = 0, num_envs: int = 2, **env_config: Any) -> JointEnvRunner:
    config: Any = HAPPOConfig().environment(Lottery, env_config=env_config).debugging(seed=3)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=num_envs).validate()
    return JointEnvRunner(config=config, worker_index=worker_index)


def numbers(fragments: list[Any]) -> list[float]:
    return [float(f.obs["only"][0, 0]) for f in fragments]


def test_seeded_episodes_differ_from_call_to_call_and_recur_from_run_to_run() -> None:
    first, again = runner(), runner()
    drawn = [number for _ in range(3) for number in numbers(first.sample(num_episodes=2))]
    assert len(set(drawn)) == 6
    assert drawn == [number for _ in range(3) for number in numbers(again.sample(num_episodes=2))]


def test_no_two_sub_environments_of_any_env_runner_begin_alike() -> None:
    drawn = [x for index in range(4) for x in numbers(runner(index, num_envs=3).sample(num_episodes=3))]
    assert len(set(drawn)) == 12


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_exactly_as_many_episodes_as_asked_for(number: int) -> None:
    fragments = runner().sample(num_episodes=number)
    assert len(fragments) == number
    assert all(f.truncated for f in fragments)


def test_whole_episodes_are_not_cut() -> None:
    length = 2 * CHUNK + 7
    fragments = runner(length=length).sample(num_episodes=2)
    assert [(len(f), f.env_t, f.truncated) for f in fragments] == [(length, 0, True)] * 2


@pytest.mark.parametrize("how", [{"num_episodes": 2}, {"num_timesteps": 4}])
def test_a_restored_runner_goes_on_as_the_saved_one(how: dict[str, int]) -> None:
    saved, restored = runner(), runner()
    saved.sample(**how)
    restored.set_state(saved.get_state())
    for _ in range(2):
        assert numbers(restored.sample(**how)) == numbers(saved.sample(**how))
