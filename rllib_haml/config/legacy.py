"""Key names of older RLlib versions, translated to the ones of the new API stack.

Only what keeps its meaning is translated. What has no counterpart is refused with a way out, because
RLlib would take it in silence and ignore it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from rllib_haml.config.document import Document, KeyPath
from rllib_haml.config.search import map_leaves

logger = logging.getLogger("rllib_haml")


@dataclass(frozen=True)
class Entry:
    """One config key with its value; `path` stays the place where the user wrote it."""

    key: str
    value: Any
    path: KeyPath


# Old name -> present name.
RENAMED = {
    "callbacks": "callbacks_class",
    "custom_eval_function": "custom_evaluation_function",
    "custom_resources_per_worker": "custom_resources_per_env_runner",
    "entropy_coeff_schedule": "entropy_coeff",
    "evaluation_num_episodes": "evaluation_duration",
    "evaluation_num_workers": "evaluation_num_env_runners",
    "ignore_worker_failures": "ignore_env_runner_failures",
    "input": "input_",
    "lambda": "lambda_",
    "lr_schedule": "lr",
    "max_num_worker_restarts": "max_num_env_runner_restarts",
    "metrics_smoothing_episodes": "metrics_num_episodes_for_smoothing",
    "min_iter_time_s": "min_time_s_per_iteration",
    "min_sample_timesteps_per_reporting": "min_sample_timesteps_per_iteration",
    "min_time_s_per_reporting": "min_time_s_per_iteration",
    "min_train_timesteps_per_reporting": "min_train_timesteps_per_iteration",
    "model": "model_config",
    "num_cpus_for_driver": "num_cpus_for_main_process",
    "num_cpus_per_learner_worker": "num_cpus_per_learner",
    "num_cpus_per_worker": "num_cpus_per_env_runner",
    "num_envs_per_worker": "num_envs_per_env_runner",
    "num_gpus": "num_gpus_per_learner",
    "num_gpus_per_learner_worker": "num_gpus_per_learner",
    "num_gpus_per_worker": "num_gpus_per_env_runner",
    "num_learner_workers": "num_learners",
    "num_rollout_workers": "num_env_runners",
    "num_sgd_iter": "num_epochs",
    "num_workers": "num_env_runners",
    "recreate_failed_env_runners": "restart_failed_env_runners",
    "recreate_failed_workers": "restart_failed_env_runners",
    "sgd_minibatch_size": "minibatch_size",
    "shuffle_sequences": "shuffle_batch_per_epoch",
    "train_batch_size": "train_batch_size_per_learner",
}

# RLlib's new names for these are not new: they are what the builder methods call them, or what
# Python's reserved words enforce. No log line for them.
_SPELLINGS = frozenset({"callbacks", "input", "lambda"})

# Totals over all learners, which the new API stack counts per learner.
_DIVIDED = frozenset({"train_batch_size", "num_gpus"})

_MODEL_RENAMED = {
    "post_fcnet_activation": "head_fcnet_activation",
    "post_fcnet_hiddens": "head_fcnet_hiddens",
    "lstm_use_prev_action_reward": "lstm_use_prev_action",
}

# Settings of the old API stack: allowed at the value that means "off", refused otherwise.
_OFF_AND_WAY_OUT: dict[str, tuple[tuple[Any, ...], str]] = {
    "enable_connectors": ((True,), "Connectors are always on."),
    "framework": (("torch",), "Only `torch` is supported."),
    "framework_str": (("torch",), "Only `torch` is supported."),
    "horizon": ((None,), "Give the time limit to the environment, in `env_config`."),
    "no_done_at_end": ((False,), "Give the time limit to the environment, in `env_config`."),
    "observation_filter": (
        ("NoFilter",),
        "Normalise in the environment, or name a connector under `env_to_module_connector`.",
    ),
    "preprocessor_pref": ((None, "deepmind"), "Preprocess in the environment."),
    "remote_worker_envs": ((False,), "Use more env runners: `num_env_runners`."),
    "simple_optimizer": ((False, True), ""),
    "soft_horizon": ((False,), "Give the time limit to the environment, in `env_config`."),
}


def translate(entries: Iterable[Entry], num_learners: int, document: Document) -> list[Entry]:
    """Entries under their present names; one log line for each that had an old one."""
    translated: dict[str, Entry] = {}
    for entry in _flatten_multiagent(entries, document):
        if _is_off_switch(entry, document):
            continue
        new = _translate_one(entry, num_learners, document)
        if new.key in translated:
            other = translated[new.key].path[-1]
            document.error(entry.path, f"is the old name of `{other}`, which is given too. Delete one.")
            continue
        translated[new.key] = new
    return list(translated.values())


def _flatten_multiagent(entries: Iterable[Entry], document: Document) -> Iterator[Entry]:
    for entry in entries:
        if entry.key != "multiagent":
            yield entry
        elif isinstance(entry.value, dict):
            for key, value in entry.value.items():
                yield Entry(key, value, (*entry.path, key))
        else:
            document.error(entry.path, "expected a mapping with `policies`, `policy_mapping_fn`.")


def _is_off_switch(entry: Entry, document: Document) -> bool:
    if entry.key not in _OFF_AND_WAY_OUT:
        return False
    off, way_out = _OFF_AND_WAY_OUT[entry.key]
    if entry.value in off:
        logger.info("%s: `%s` has no effect any more: dropped.", entry.path[0], entry.key)
    else:
        text = f"{entry.value!r} belongs to RLlib's old API stack and would have no effect."
        document.error(entry.path, f"{text} {way_out}".strip())
    return True


def _translate_one(entry: Entry, num_learners: int, document: Document) -> Entry:
    if entry.key not in RENAMED:
        return entry
    new = replace(entry, key=RENAMED[entry.key])
    if entry.key in _DIVIDED and num_learners > 1:
        new = replace(new, value=map_leaves(entry.value, _divider(entry, num_learners, document)))
    if entry.key == "model" and isinstance(entry.value, dict):
        new = replace(new, value=_translate_model(entry, document))
    if entry.key not in _SPELLINGS:
        logger.info("%s: `%s` is now called `%s`.", entry.path[0], entry.key, new.key)
    return new


def _divider(entry: Entry, num_learners: int, document: Document) -> Callable[[Any], Any]:
    def divide(total: Any) -> Any:
        if not isinstance(total, (int, float)) or isinstance(total, bool):
            return total
        if entry.key == "num_gpus":
            return total / num_learners
        if total % num_learners:
            hint = f"Give `{RENAMED[entry.key]}` instead."
            document.error(entry.path, f"{total} cannot be dealt out to {num_learners} learners. {hint}")
        return total // num_learners

    return divide


def _translate_model(entry: Entry, document: Document) -> dict[str, Any]:
    model = {}
    for key, value in entry.value.items():
        if key in ("custom_model", "custom_model_config"):
            if value:
                text = "belongs to RLlib's old API stack. Name an RLModule under `rl_module_spec`."
                document.error((*entry.path, key), text)
            continue
        model[_MODEL_RENAMED.get(key, key)] = value
    return model
