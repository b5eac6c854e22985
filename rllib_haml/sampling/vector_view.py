"""What RLlib asks of a vector environment, answered by a `VectorTeamEnv`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from rllib_haml.sampling.vector_env import VectorTeamEnv


class TeamVectorView:
    """A VectorTeamEnv with the attributes by which RLlib asks a vector environment for its spaces."""

    def __init__(self, env: VectorTeamEnv):
        self.team, self.num_envs = env, env.num_envs
        observation_spaces: Any = env.observation_spaces
        action_spaces: Any = env.action_spaces
        self.single_observation_space = gym.spaces.Dict({**observation_spaces})
        self.single_action_space = gym.spaces.Dict({**action_spaces})
        self.observation_space, self.action_space = self.single_observation_space, self.single_action_space

    @property
    def unwrapped(self) -> TeamVectorView:
        return self

    def close(self) -> None:
        self.team.close()
