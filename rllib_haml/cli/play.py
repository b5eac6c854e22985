"""Plays episodes with a checkpoint, on the algorithm's own env runner."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

import rllib_haml
from rllib_haml.cli.logs import silence_ray
from rllib_haml.cli.render import Recorder, recording
from rllib_haml.config.names import check_environment


@dataclass(frozen=True)
class Episode:
    """Outcome of one episode."""

    team_return: float
    length: float


def play(
    checkpoint: Path, num_episodes: int, render_to: Path | None, verbosity: int = 0
) -> Iterator[Episode]:
    """Plays `num_episodes` without exploration, in this process.

    Args:
        checkpoint: Directory of an algorithm's checkpoint.
        num_episodes: How many.
        render_to: Where to write one GIF per episode; None writes none.
        verbosity: From 1 on with Ray's logs.

    Raises:
        ConfigError: The environment cannot be rendered.
    """
    rllib_haml.register()
    config = _config_for_playing(checkpoint)
    recorder = recording(config, render_to) if render_to else None
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=logging.CRITICAL)
    if not verbosity:
        silence_ray()
    try:
        algorithm = Algorithm.from_checkpoint(str(checkpoint), config=config)
        yield from _episodes(algorithm, num_episodes, recorder)
        algorithm.stop()
    finally:
        ray.shutdown()


def _episodes(algorithm: Algorithm, num_episodes: int, recorder: Recorder | None) -> Iterator[Episode]:
    runner: Any = algorithm.env_runner
    for index in range(num_episodes):
        runner.sample(num_episodes=1, explore=False, force_reset=index == 0)
        yield _outcome(runner.get_metrics())
        if recorder:
            recorder.write(index)


def _outcome(metrics: dict[str, Any]) -> Episode:
    name = "team_return_mean" if "team_return_mean" in metrics else "episode_return_mean"
    return Episode(_number(metrics[name]), _number(metrics["episode_len_mean"]))


def _number(value: Any) -> float:
    """The number behind one of RLlib's metric objects."""
    return float(value.peek() if hasattr(value, "peek") else value)


def _config_for_playing(checkpoint: Path) -> AlgorithmConfig:
    """The checkpoint's config, shrunk to one environment in this process and to no learner GPU."""
    made_of = pickle.loads((checkpoint / "class_and_ctor_args.pkl").read_bytes())
    [given], _ = made_of["ctor_args_and_kwargs"]
    if isinstance(given, AlgorithmConfig):
        config = given.copy(copy_frozen=False)
    else:
        config = made_of["class"].get_default_config().update_from_dict(given)
    if isinstance(config.env, str):
        check_environment(config.env)
    return (
        config.env_runners(num_env_runners=0, num_envs_per_env_runner=1)
        .learners(num_learners=0, num_gpus_per_learner=0)
        .evaluation(evaluation_interval=None, evaluation_num_env_runners=0)
        # One episode at a time is asked for: the mean over one is its own value.
        .reporting(metrics_num_episodes_for_smoothing=1)
    )
