"""A config of a small team, and a callback that needs no episodes."""

from __future__ import annotations

from typing import Any

from fake_envs import ScriptedMultiAgentEnv
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.tune.registry import register_env

from rllib_haml import HAPPOConfig


def config(kind: Any = HAPPOConfig, env: Any = "scripted_team", **env_config: Any) -> Any:
    register_env("scripted_team", lambda given: ScriptedMultiAgentEnv(**given))
    return kind().environment(env, env_config={"equal_rewards": True, **env_config})


class Silent(RLlibCallback):
    def on_train_result(self, **kwargs: Any) -> None:
        pass
