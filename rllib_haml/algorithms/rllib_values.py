"""What RLlib's own keys may be, where its annotations do not say it: RLlib takes any value in silence.

A key of this package's says it in the signature of the method that sets it, and so do classes that give a key
of RLlib's another meaning.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from rllib_haml.annotations import (
    COEFFICIENT,
    COUNT,
    NON_NEGATIVE,
    POSITIVE,
    RATE,
    SHARE,
    WHOLE,
    Range,
    or_null,
)

# From here on seeds are added up and go to generators that take 32 bits.
_SEED = Annotated[int, Range(0, 2**31 - 1)]
_SECONDS = Annotated[float, Range(0, endless=True)]

VALUES: dict[str, Any] = {
    "gamma": SHARE,
    "lambda_": SHARE,
    "tau": SHARE,
    "lr": RATE,
    "clip_param": POSITIVE,
    "vf_clip_param": POSITIVE,
    "vf_loss_coeff": NON_NEGATIVE,
    "entropy_coeff": COEFFICIENT,
    "kl_coeff": NON_NEGATIVE,
    "kl_target": NON_NEGATIVE,
    "grad_clip": or_null(POSITIVE),
    "grad_clip_by": Literal["value", "norm", "global_norm"],
    "seed": or_null(_SEED),
    "num_epochs": COUNT,
    "minibatch_size": or_null(COUNT),
    "train_batch_size": COUNT,
    "train_batch_size_per_learner": or_null(COUNT),
    "num_env_runners": WHOLE,
    "num_envs_per_env_runner": COUNT,
    "num_cpus_per_env_runner": NON_NEGATIVE,
    "num_gpus_per_env_runner": NON_NEGATIVE,
    "gym_env_vectorize_mode": Literal["sync", "async", "vector_entry_point"],
    "max_requests_in_flight_per_env_runner": COUNT,
    "rollout_fragment_length": COUNT | Literal["auto"],
    "batch_mode": Literal["truncate_episodes", "complete_episodes"],
    "count_steps_by": Literal["env_steps", "agent_steps"],
    "sample_timeout_s": _SECONDS,
    "num_learners": WHOLE,
    "num_cpus_per_learner": NON_NEGATIVE | Literal["auto"],
    "num_gpus_per_learner": NON_NEGATIVE,
    "num_cpus_for_main_process": WHOLE,
    "evaluation_interval": or_null(WHOLE),
    "evaluation_num_env_runners": WHOLE,
    "evaluation_duration": COUNT | Literal["auto"],
    "evaluation_duration_unit": Literal["episodes", "timesteps"],
    "evaluation_sample_timeout_s": _SECONDS,
    "metrics_num_episodes_for_smoothing": COUNT,
    "max_num_env_runner_restarts": WHOLE,
    "env_runner_health_probe_timeout_s": _SECONDS,
    "env_runner_restore_timeout_s": _SECONDS,
    "delay_between_env_runner_restarts_s": _SECONDS,
    "min_time_s_per_iteration": or_null(NON_NEGATIVE),
    "log_level": Literal["DEBUG", "INFO", "WARN", "ERROR"],
}
