"""Which env runner samples: the fast one, unless the configuration needs RLlib's episodes."""

from __future__ import annotations

import logging
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.utils import force_list

from rllib_haml.algorithms.user_modules import has_own_multi_rl_module
from rllib_haml.sampling.joint_env_runner import JointEnvRunner

logger = logging.getLogger("rllib_haml")

EPISODE_CALLBACKS = (
    "on_episode_created",
    "on_episode_start",
    "on_episode_step",
    "on_episode_end",
    "on_sample_end",
)


def choose_env_runner(config: Any) -> type:
    """The user's own class, else JointEnvRunner, else RLlib's with the reason logged."""
    if config.env_runner_cls not in (None, JointEnvRunner):
        return config.env_runner_cls
    reason = why_stock(config)
    if reason is None:
        return JointEnvRunner
    logger.warning(
        "Sampling with RLlib's MultiAgentEnvRunner, several times slower: %s. With several sub-environments, "
        "evaluation and batch_mode='complete_episodes' take the first episodes to end there: short ones.",
        reason,
    )
    return MultiAgentEnvRunner


def why_stock(config: Any) -> str | None:
    """What in `config` needs MultiAgentEpisodes, or None."""
    if config._env_to_module_connector is not None:
        return "a custom env_to_module_connector"
    if config._module_to_env_connector is not None:
        return "a custom module_to_env_connector"
    for pipeline in ("env_to_module", "module_to_env"):
        if not getattr(config, f"add_default_connectors_to_{pipeline}_pipeline"):
            return f"add_default_connectors_to_{pipeline}_pipeline=False"
    if config.count_steps_by == "agent_steps":
        return "count_steps_by='agent_steps'"
    if has_own_multi_rl_module(config._rl_module_spec):
        return "a MultiRLModule class of your own"
    for name in EPISODE_CALLBACKS:
        classes = force_list(config.callbacks_class)
        overridden = any(getattr(cls, name) is not getattr(RLlibCallback, name) for cls in classes)
        if overridden or getattr(config, f"callbacks_{name}") is not None:
            return f"the callback {name}"
    return None
