"""Episodes of the scripted environments through the vector interface."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from fake_envs import ScriptedMultiAgentEnv, ScriptedParallelEnv, action_script

from rllib_haml.sampling.make_vector import make_vector_team_env
from rllib_haml.sampling.vector_env import TeamStep

KINDS = pytest.mark.parametrize("kind", [ScriptedMultiAgentEnv, ScriptedParallelEnv])


def actions_for(vec: Any, episode: int = 0, step: int = 0) -> dict[str, np.ndarray]:
    """The scripted actions, the same for all sub-environments."""
    one = action_script(vec._teams[0].env, episode, step)
    return {agent: np.stack([action] * vec.num_envs) for agent, action in one.items()}


def run(kind: type, num_envs: int = 2, **script: Any) -> Any:
    """Its environments, after their first reset."""
    vec: Any = make_vector_team_env(lambda: kind(**script), num_envs)
    vec.reset(range(num_envs), [None] * num_envs)
    return vec


def steps_until_end(vec: Any) -> list[TeamStep]:
    """Copies of what is seen after each step of one episode of row 0."""
    seen = []
    for step in range(100):
        out = vec.step(actions_for(vec, step=step))
        seen.append(pickle.loads(pickle.dumps(out)))
        if out.terminated[0] or out.truncated[0]:
            return seen
    raise AssertionError("the episode does not end")
