"""The metrics on which a run may stop: everything that a result of RLlib's new API stack can hold."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

from rllib_haml.config.document import Document, KeyPath
from rllib_haml.config.errors import did_you_mean

logger = logging.getLogger("rllib_haml")

_TUNE = (
    "training_iteration",
    "time_total_s",
    "time_this_iter_s",
    "time_since_restore",
    "iterations_since_restore",
    "timestamp",
    "num_env_steps_sampled_lifetime",
    "num_training_step_calls_per_iteration",
)

_ENV_RUNNERS = (
    "episode_return_mean",
    "episode_return_max",
    "episode_return_min",
    "episode_len_mean",
    "episode_len_max",
    "episode_len_min",
    "episode_duration_sec_mean",
    "num_episodes",
    "num_episodes_lifetime",
    "num_env_steps_sampled",
    "num_env_steps_sampled_lifetime",
    "num_env_steps_sampled_lifetime_throughput/*",
    "agent_episode_returns_mean/*",
    "agent_steps/*",
    "module_episode_returns_mean/*",
    "num_agent_steps_sampled/*",
    "num_agent_steps_sampled_lifetime/*",
    "num_module_steps_sampled/*",
    "num_module_steps_sampled_lifetime/*",
    "weights_seq_no",
)

# Learner metrics are the algorithm's own and many; what is known is that they stand under a module.
_OPEN = ("learners/*/*", "timers/*", "fault_tolerance/*", "perf/*")

# What people call the number of env steps, and what is never meant: Tune's clock, not a count of steps.
_MEANT: dict[str, str] = dict.fromkeys(
    ("timesteps", "steps", "env_steps", "total_env_steps", "num_env_steps"), "num_env_steps_sampled_lifetime"
)
_NEVER_MEANT = "timestamp"

# Under the names of RLlib's old API stack, where it reported the same number.
_RENAMED = {
    "episode_reward_mean": "env_runners/episode_return_mean",
    "episode_reward_max": "env_runners/episode_return_max",
    "episode_reward_min": "env_runners/episode_return_min",
    "episode_len_mean": "env_runners/episode_len_mean",
    "episodes_total": "env_runners/num_episodes_lifetime",
    "timesteps_total": "num_env_steps_sampled_lifetime",
    "num_env_steps_sampled": "num_env_steps_sampled_lifetime",
}
_RENAMED |= {f"sampler_results/{old}": new for old, new in _RENAMED.items() if "episode_" in old}
_RENAMED |= {f"evaluation/{old}": f"evaluation/{new}" for old, new in _RENAMED.items() if "episode_" in old}


def stop_criteria(
    raw: dict[str, Any],
    path: KeyPath,
    document: Document,
    own_metrics: Iterable[str] = (),
    reports_custom_metrics: bool = False,
) -> dict[str, float]:
    """Translates and checks stop criteria: result metric -> number at which to stop.

    Args:
        raw: The criteria as written; nested mappings stand for `a/b`.
        path: Where they stand.
        document: Takes the mistakes.
        own_metrics: Further metrics that the algorithm reports.
        reports_custom_metrics: Callbacks may report any metric: an unknown one is only warned of.
    """
    known = [*_TUNE, *(f"env_runners/{leaf}" for leaf in _ENV_RUNNERS), *own_metrics]
    known += [f"evaluation/{name}" for name in known if name.startswith("env_runners/")]
    criteria: dict[str, float] = {}
    for written, (where, number) in _flatten(raw, path).items():
        name = _translated(written)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or number != number:
            document.error(where, f"given {number!r}, expected a number at which to stop.")
        elif not any(fnmatchcase(name, pattern) for pattern in (*known, *_OPEN)):
            _unknown(written, where, document, known, reports_custom_metrics)
        criteria[name] = number
    return criteria


def _flatten(raw: dict[str, Any], path: KeyPath, prefix: str = "") -> dict[str, tuple[KeyPath, Any]]:
    flat: dict[str, tuple[KeyPath, Any]] = {}
    for key, value in raw.items():
        here, name = (*path, key), f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flatten(value, here, f"{name}/")
        else:
            flat[name] = (here, value)
    return flat


def _translated(name: str) -> str:
    new = _RENAMED.get(name, name)
    if name.startswith("policy_reward_mean/"):
        new = name.replace("policy_reward_mean", "env_runners/module_episode_returns_mean", 1)
    if new != name:
        logger.info("stop: `%s` is now called `%s`.", name, new)
    return new


def _unknown(name: str, where: KeyPath, document: Document, known: list[str], may_be_custom: bool) -> None:
    # `episode_return_mean` means `env_runners/episode_return_mean`: compare the last parts first.
    leaves = {metric.rpartition("/")[2]: metric for metric in reversed(known) if "*" not in metric}
    meant = leaves.get(name.rpartition("/")[2])
    if may_be_custom and not meant:
        logger.warning("stop: `%s` is none of RLlib's metrics; do the callbacks log it?", name)
        return
    meant = meant or _MEANT.get(name.rpartition("/")[2])
    options = {*_RENAMED, *known} - {_NEVER_MEANT}
    hint = f"Did you mean `{meant}`?" if meant else did_you_mean(name, options)
    document.error(where, f"no result has this metric, the run would never stop. {hint}")
