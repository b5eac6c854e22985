"""One train batch from all env runners."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED

from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.fragment import JointFragment
from rllib_haml.sampling.from_episodes import as_fragments

logger = logging.getLogger("rllib_haml")


def _sample(env_runner: Any) -> tuple[list[Any], Any] | EnvironmentFault:
    """Runs on the env runner. A fault travels as a value: raised there, RLlib would keep its cause."""
    try:
        return env_runner.sample(), env_runner.get_metrics()
    except EnvironmentFault as fault:
        return fault


class Sample(NamedTuple):
    """What the env runners gave for one train batch.

    Attributes:
        fragments: All sampled with the newest weights; none if no env runner answered in time.
        results: Each answer's metrics.
        stale_steps: Env steps dropped because older weights had sampled them.
    """

    fragments: list[JointFragment]
    results: list[Any]
    stale_steps: int


def sample_fragments(env_runner_group: Any, config: Any) -> Sample:
    """Samples until the env steps of a train batch are there.

    Raises:
        EnvironmentFault: If an environment is at fault; it names agent, sub-environment and step.
    """
    samples: list[Any] = []
    results: list[Any] = []
    steps = 0
    while steps < config.total_train_batch_size:
        if env_runner_group.num_remote_workers() > 0:
            answers = env_runner_group.foreach_env_runner(
                _sample, local_env_runner=False, timeout_seconds=config.sample_timeout_s
            )
        else:
            answers = [_sample(env_runner_group.local_env_runner)]
        if not answers:
            logger.warning(
                "No env runner returned samples within sample_timeout_s=%s: is an environment stuck, or "
                "slower than that?",
                config.sample_timeout_s,
            )
            break
        for answer in answers:
            if isinstance(answer, EnvironmentFault):
                raise answer
            samples += answer[0]
            results.append(answer[1])
            steps += int(answer[1][NUM_ENV_STEPS_SAMPLED])
    fragments = as_fragments(samples, config)
    newest = max((f.weights_seq_no for f in fragments), default=0)
    fresh = [f for f in fragments if f.weights_seq_no == newest]
    stale_steps = sum(map(len, fragments)) - sum(map(len, fresh))
    if stale_steps:
        logger.warning("Dropped %d env steps that older weights had sampled.", stale_steps)
    return Sample(fresh, results, stale_steps)
