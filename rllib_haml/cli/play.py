"""Plays episodes with a checkpoint, on the algorithm's own env runner."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from pyarrow.fs import LocalFileSystem
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

import rllib_haml
from rllib_haml.algorithms.haml_config import HAMLConfig
from rllib_haml.checkpoints.manifest import MANIFEST
from rllib_haml.checkpoints.read import CheckpointError, check_any, class_of, config_of, warn_unverified
from rllib_haml.cli.logs import silence_ray
from rllib_haml.cli.render import Recorder, recording, unrendered
from rllib_haml.config.errors import ConfigError, Problem
from rllib_haml.config.names import NameProblem, check_environment
from rllib_haml.learners.batch import JointBatch
from rllib_haml.sampling.fragment import in_batch_order
from rllib_haml.sampling.from_episodes import as_fragments
from rllib_haml.sampling.metrics import rewards_of


@dataclass(frozen=True)
class Episode:
    """How one episode went; `outcome` is a `JointFragment`'s."""

    team_return: float
    length: int
    outcome: dict[str, float] = field(default_factory=dict)


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
        ConfigError: The checkpoint cannot be loaded, or the environment not be rendered.
    """
    rllib_haml.register()
    config = _config_for_playing(checkpoint)
    recorder = recording(config, render_to) if render_to else None
    with _playing(checkpoint, config, bool(recorder), verbosity) as algorithm:
        yield from _episodes(algorithm, num_episodes, recorder)


def observe(checkpoint: Path, num_steps: int) -> JointBatch:
    """What the team of a checkpoint of this package does in about so many joint steps, with exploration.

    Raises:
        ConfigError: The checkpoint cannot be loaded.
    """
    rllib_haml.register()
    config: Any = _config_for_playing(checkpoint)
    with _playing(checkpoint, config, False, verbosity=0) as algorithm:
        return _observed(algorithm, num_steps)


def _observed(algorithm: Any, num_steps: int) -> JointBatch:
    samples = algorithm.env_runner.sample(num_timesteps=num_steps, explore=True)
    fragments = in_batch_order(as_fragments(samples, algorithm.config))
    connector = algorithm.config.build_learner_connector(None, None)
    return JointBatch.of(connector(rl_module=algorithm.env_runner.module, batch={}, episodes=fragments))


@contextmanager
def _playing(
    checkpoint: Path, config: AlgorithmConfig, rendering: bool, verbosity: int
) -> Iterator[Algorithm]:
    """The algorithm of a checkpoint, on a Ray of its own."""
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=logging.CRITICAL)
    if not verbosity:
        silence_ray()
        # That the training's episodes are not continued goes without saying here.
        logging.getLogger("rllib_haml").setLevel(logging.ERROR)
    try:
        algorithm = _build(checkpoint, config, rendering)
        yield algorithm
        algorithm.stop()
    finally:
        ray.shutdown()


def _build(checkpoint: Path, config: AlgorithmConfig, rendering: bool) -> Algorithm:
    try:
        return Algorithm.from_checkpoint(str(checkpoint), config=config)
    except Exception as error:
        if rendering:
            # Graphics that are not installed show when the environment is made.
            raise unrendered("the environment cannot be made for rendering", error) from error
        raise


def _episodes(algorithm: Algorithm, num_episodes: int, recorder: Recorder | None) -> Iterator[Episode]:
    runner: Any = algorithm.env_runner
    for index in range(num_episodes):
        samples = runner.sample(num_episodes=1, explore=False)
        # RLlib's env runners would seed the environment anew and play the same episode again.
        runner._needs_initial_reset = False
        yield _played(samples, algorithm.config)
        if recorder:
            recorder.write(index)


def _played(samples: list[Any], config: Any) -> Episode:
    """The one episode that `samples` are the pieces of."""
    if not isinstance(config, HAMLConfig):
        return Episode(sum(e.get_return() for e in samples), sum(map(len, samples)))
    fragments = as_fragments(samples, config)
    rewards = [rewards_of(f, config.team_reward, str(config.env)) for f in fragments]
    outcome = {name: value for f in fragments for name, value in f.outcome.items()}
    return Episode(float(sum(r.sum() for r in rewards)), sum(map(len, rewards)), outcome)


def _elsewhere(checkpoint: Path, text: str) -> ConfigError:
    """What is needed to play was found where training ran, and is not found from here."""
    way_out = (
        "Go (`cd`) to the directory in which its module lies, or name that: "
        "`PYTHONPATH=DIR rllib evaluate CHECKPOINT`."
    )
    return ConfigError([Problem("rllib evaluate", str(checkpoint), f"{text} {way_out}")])


def _config_for_playing(checkpoint: Path) -> AlgorithmConfig:
    """The checkpoint's config, shrunk to one environment in this process and to no learner GPU."""
    place, here = checkpoint.absolute().as_posix(), LocalFileSystem()
    try:
        check_any(checkpoint)
        if not (checkpoint / MANIFEST).is_file():
            warn_unverified(checkpoint)
        made_by, given = class_of(place, here), config_of(place, here)
    except (CheckpointError, FileNotFoundError) as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise _elsewhere(checkpoint, f"cannot be read: {error.__cause__}.") from error
        raise ConfigError([Problem("rllib evaluate", "", str(error))]) from error
    if isinstance(given, AlgorithmConfig):
        config = given.copy(copy_frozen=False)
    else:
        config = made_by.get_default_config().update_from_dict(given)
    if isinstance(config.env, str):
        try:
            check_environment(config.env)
        except NameProblem as problem:
            raise _elsewhere(checkpoint, f"its environment is not found from here: {problem}") from problem
    return (
        config.env_runners(num_env_runners=0, num_envs_per_env_runner=1)
        .learners(num_learners=0, num_gpus_per_learner=0)
        .evaluation(evaluation_interval=None, evaluation_num_env_runners=0)
    )
