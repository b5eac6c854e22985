"""What to do with an environment that is no team's."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from pettingzoo import AECEnv
from ray.rllib.env.wrappers.pettingzoo_env import PettingZooEnv


def way_out(env: Any) -> str:
    """A sentence or two on `env`, which is neither RLlib's `MultiAgentEnv` nor PettingZoo's `ParallelEnv`."""
    if isinstance(env, type):
        return f"Return an instance from the environment's creator: {env.__name__}()."
    if isinstance(env, (AECEnv, PettingZooEnv)):
        return (
            "It is turn-based. If its agents really act at once, convert it: "
            "pettingzoo.utils.conversions.aec_to_parallel(env)."
        )
    if isinstance(env, gym.Env):
        return single_agent("creator")
    return (
        "Write a class with possible_agents, observation_spaces, action_spaces, reset() and step() "
        "that derives from ray.rllib.env.multi_agent_env.MultiAgentEnv."
    )


def single_agent(creator: str) -> str:
    """The same of gymnasium's environment that `creator`, a name or an expression, makes."""
    return (
        "It is single-agent: use `--run PPO`, or wrap it as a team of one, `Team = "
        f"ray.rllib.env.multi_agent_env.make_multi_agent({creator})` in my_module.py, and name "
        "`my_module:Team`."
    )
