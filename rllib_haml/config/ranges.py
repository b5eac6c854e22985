"""Which numbers and which words the common settings may take; RLlib takes any of them in silence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Range(NamedTuple):
    """An interval; None is no bound. `open_low` excludes the lower end."""

    low: float | None = None
    high: float | None = None
    open_low: bool = False

    def contains(self, value: float) -> bool:
        """Whether `value` lies inside; NaN lies nowhere."""
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        return value == value and above and (self.high is None or value <= self.high)

    def describe(self, name: str) -> str:
        """The interval as an inequality in `name`."""
        low = "" if self.low is None else f"{self.low:g} {'<' if self.open_low else '<='} "
        high = "" if self.high is None else f" <= {self.high:g}"
        return f"{low}{name}{high}"


_POSITIVE = Range(0, None, open_low=True)
_NON_NEGATIVE = Range(0)
_AT_LEAST_ONE = Range(1)
_UNIT = Range(0, 1)

RANGES: dict[str, Range] = {
    **dict.fromkeys(["gamma", "lambda_", "tau"], _UNIT),
    **dict.fromkeys(["lr", "clip_param", "vf_clip_param", "grad_clip"], _POSITIVE),
    **dict.fromkeys(
        [
            "entropy_coeff",
            "vf_loss_coeff",
            "kl_coeff",
            "kl_target",
            "seed",
            "num_env_runners",
            "num_cpus_per_env_runner",
            "num_gpus_per_env_runner",
            "num_learners",
            "num_cpus_per_learner",
            "num_gpus_per_learner",
            "num_cpus_for_main_process",
            "sample_timeout_s",
            "evaluation_interval",
            "evaluation_num_env_runners",
        ],
        _NON_NEGATIVE,
    ),
    **dict.fromkeys(
        [
            "num_epochs",
            "minibatch_size",
            "train_batch_size",
            "train_batch_size_per_learner",
            "num_envs_per_env_runner",
            "rollout_fragment_length",
            "evaluation_duration",
            "metrics_num_episodes_for_smoothing",
        ],
        _AT_LEAST_ONE,
    ),
}

# Settings in RANGES that mean something when they are null although their default is a number.
NULLABLE = frozenset({"grad_clip", "minibatch_size"})

WORDS: dict[str, tuple[str, ...]] = {
    "batch_mode": ("truncate_episodes", "complete_episodes"),
    "count_steps_by": ("env_steps", "agent_steps"),
    "evaluation_duration": ("auto",),
    "evaluation_duration_unit": ("episodes", "timesteps"),
    "grad_clip_by": ("value", "norm", "global_norm"),
    "log_level": ("DEBUG", "INFO", "WARN", "ERROR"),
    "num_cpus_per_learner": ("auto",),
    "rollout_fragment_length": ("auto",),
}


def out_of_range(key: str, value: Any, own: Mapping[str, tuple[Any, ...]]) -> str | None:
    """What is expected of `key` if `value` is outside of it, else None.

    Args:
        key: Name of the setting.
        value: Its value; a schedule, a list of [timestep, value] pairs, is checked value by value. It
            may reach an excluded lower end: a learning rate that falls to 0.
        own: Ranges that the algorithm itself declares; they go before the general ones.
    """
    if isinstance(value, str):
        words = WORDS.get(key)
        return f"one of {', '.join(words)}" if words and value not in words else None
    interval = Range(*own[key]) if key in own else RANGES.get(key)
    if interval is None:
        return None
    if isinstance(value, list):
        interval = interval._replace(open_low=False)
    return None if all(interval.contains(number) for number in _numbers(value)) else interval.describe(key)


def _numbers(value: Any) -> list[float]:
    if isinstance(value, list):
        return [pair[1] for pair in value if isinstance(pair, list) and len(pair) == 2]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []
