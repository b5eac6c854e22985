"""One train batch from all env runners."""

from __future__ import annotations

import logging
from typing import Any

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


def sample_fragments(env_runner_group: Any, config: Any) -> tuple[list[JointFragment], list[Any]]:
    """Samples until the env steps of a train batch are there.

    Returns:
        Fragments, all of the newest weights, and each env runner's metrics; nothing if no env runner
        answered in time.

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
    stale = [f for f in fragments if f.weights_seq_no != newest]
    if stale:
        logger.warning("Dropped %d env steps sampled with old weights.", sum(map(len, stale)))
    return [f for f in fragments if f.weights_seq_no == newest], results
