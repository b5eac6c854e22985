"""Nested observations and action masks, wherever an environment puts them."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from fake_envs import ScriptedParallelEnv
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from scripted_runs import run

from rllib_haml.modules.heads import make_head
from rllib_haml.modules.model_config import ModelConfig
from rllib_haml.sampling.make_vector import make_vector_team_env
from rllib_haml.sampling.spaces import choices


class DictEnv(MultiAgentEnv):
    """Nested observations with a mask, as RLlib's action-masking example has them."""

    def __init__(self):
        self.possible_agents = self.agents = ["b", "a"]
        super().__init__()
        box = gym.spaces.Box(0, 255, (2, 2, 3), np.uint8)
        inner = gym.spaces.Dict({"image": box, "cell": gym.spaces.Discrete(9)})
        pair = gym.spaces.Tuple([inner, gym.spaces.Box(-1, 1, (2,), np.float64)])
        mask = gym.spaces.Box(0, 1, (3,), np.int8)
        self.observation_spaces = {
            "b": gym.spaces.Dict({"observations": pair, "action_mask": mask}),
            "a": gym.spaces.Discrete(4),
        }
        moves = gym.spaces.Dict({"go": gym.spaces.Discrete(2), "v": gym.spaces.Box(-1, 1, (2,))})
        self.action_spaces = {"b": gym.spaces.Discrete(3), "a": moves}

    def obs(self, t):
        view = {"image": np.full((2, 2, 3), t, np.uint8), "cell": t}
        return {
            "b": {"observations": (view, np.array([t, 0.5])), "action_mask": np.array([1, 0, 1])},
            "a": t,
        }

    def reset(self, *, seed=None, options=None):
        return self.obs(0), {}

    def step(self, action_dict):
        self.action = action_dict
        rewards = {"a": 1.0, "b": 1.0}
        # The agent with the mask leaves.
        gone = {"b": True, "__all__": False}
        return self.obs(2), rewards, gone, {"__all__": False}, {}


def test_trees_keep_their_structure_and_types():
    vec = make_vector_team_env(DictEnv, 2)
    out = vec.reset([0, 1], [None, None])
    view, pair = out.obs["b"]["observations"]
    assert view["image"].shape == (2, 2, 2, 3)
    assert view["image"].dtype == np.uint8
    assert view["cell"].dtype == np.int64
    assert pair.dtype == np.float32
    assert out.obs["a"].dtype == np.int64
    assert out.action_mask["b"].tolist() == [[True, False, True]] * 2
    assert out.action_mask["b"].dtype == bool
    v = np.array([[0.0, 0.1], [0.2, 0.3]], np.float32)
    out = vec.step({"b": np.array([0, 2]), "a": {"go": np.array([0, 1]), "v": v}})
    action = vec._teams[1].env.action
    assert action["b"] == 2
    assert action["a"]["go"] == 1
    np.testing.assert_array_equal(action["a"]["v"], v[1])
    # Gone: zeros, but a mask that a policy can be run on.
    assert not out.obs["b"]["observations"][0]["image"].any()
    assert out.action_mask["b"].all()
    assert out.obs["a"].tolist() == [2, 2]


def test_mask_from_infos():
    class Masked(ScriptedParallelEnv):
        def reset(self, seed=None, options=None):
            obs, _ = super().reset(seed, options)
            return obs, {"scout": {"action_mask": np.array([0, 1], np.int8)}}

    out = run(Masked).reset([], [])
    assert out.action_mask["scout"].tolist() == [[False, True]] * 2
    assert list(out.action_mask) == ["scout"]


@pytest.mark.parametrize("beside", ["observations", "features"])
def test_mask_in_the_observation_is_found_whatever_else_is_there(beside: str):
    space = gym.spaces.Dict({beside: gym.spaces.Box(0, 1, (1,)), "action_mask": gym.spaces.MultiBinary(2)})

    class Masked(ScriptedParallelEnv):
        def observation_space(self, agent):
            return space

        def reset(self, seed=None, options=None):
            obs, infos = super().reset(seed, options)
            return {a: {beside: np.zeros(1, np.float32), "action_mask": np.array([0, 1])} for a in obs}, infos

    out = run(Masked, agents=("scout",)).reset([0, 1], [None, None])
    assert out.action_mask["scout"].tolist() == [[False, True]] * 2


CHOICES: list[tuple[gym.Space, list[int]]] = [
    (gym.spaces.Box(0, 1, (2,)), []),
    (gym.spaces.MultiBinary(3), []),
    (gym.spaces.Discrete(4), [4]),
    (gym.spaces.MultiDiscrete([3, 2]), [3, 2]),
    (gym.spaces.MultiDiscrete([[3, 2], [4, 5]]), [3, 2, 4, 5]),
    (gym.spaces.Tuple([gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(3), gym.spaces.Discrete(2)]), [3, 2]),
    (
        gym.spaces.Dict({"z": gym.spaces.Discrete(2), "a": gym.spaces.MultiDiscrete([5, 6])}),
        [5, 6, 2],  # in the Dict's order, which gymnasium sorts
    ),
]


@pytest.mark.parametrize("space, options", CHOICES, ids=str)
def test_what_a_mask_speaks_of(space: gym.Space, options: list[int]) -> None:
    """In the order in which the policy's family reads it."""
    assert choices(space) == options
    assert make_head(space, ModelConfig()).family.mask_size == sum(options)
