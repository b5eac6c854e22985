"""An experiment, checked and ready to train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


@dataclass(frozen=True)
class Experiment:
    """One experiment of a file, checked and ready to train.

    Attributes:
        name: Its name.
        algorithm: The name under `run`.
        algorithm_class: The class that it stands for.
        config: The config of the first point of the search space; without a search, the config.
        param_space: `config` with Tune's search markers.
        num_trials: Points of the search space times `num_samples`.
        stop: Metric -> number at which a trial stops.
        num_samples: How often the search space is sampled.
        checkpoints: Keyword arguments of Tune's CheckpointConfig.
        storage_path: Where results go; None for `~/ray_results`.
        restore: Checkpoint that every trial starts from.
        max_failures: How often a failed trial is started again from its last checkpoint.
        time_budget_s: Seconds after which the whole experiment ends.
        tune_callbacks: Tune callbacks besides Tune's default ones.
        spec: As it was written, flags included.
        directory: That of this run under `storage_path`; None: it is called like the experiment.
    """

    name: str
    algorithm: str
    algorithm_class: type[Algorithm]
    config: AlgorithmConfig
    param_space: AlgorithmConfig
    num_trials: int = 1
    stop: dict[str, float] = field(default_factory=dict)
    num_samples: int = 1
    checkpoints: dict[str, Any] = field(default_factory=dict)
    storage_path: str | None = None
    restore: str | None = None
    max_failures: int = 0
    time_budget_s: float | None = None
    tune_callbacks: list[Any] = field(default_factory=list)
    spec: dict[str, Any] = field(default_factory=dict)
    directory: str | None = None
