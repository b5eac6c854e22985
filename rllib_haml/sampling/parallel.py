"""One train batch from all env runners."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED

from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.fragment import JointFragment
from rllib_haml.sampling.from_episodes import as_fragments

logger = logging.getLogger("rllib_haml")
_TAG = "train batch"


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


class BatchSampler:
    """Train batches from all env runners, which may work on one before it is asked for.

    Args:
        env_runner_group: Of the algorithm.
        config: The algorithm's.
    """

    def __init__(self, env_runner_group: Any, config: Any):
        self._group, self._config = env_runner_group, config

    def begin(self) -> None:
        """Lets remote env runners sample the next batch with the weights that they have been sent."""
        if self._is_remote:
            self._group.foreach_env_runner_async(_sample, tag=_TAG)

    def forget(self) -> None:
        """Waits for what was begun, and drops it: other weights, or another state, count from now on."""
        if self._is_remote:
            self._group.fetch_ready_async_reqs(tags=_TAG, timeout_seconds=self._config.sample_timeout_s)

    def collect(self) -> Sample:
        """Samples until the env steps of a train batch are there.

        Raises:
            EnvironmentFault: If an environment is at fault; it names agent, sub-environment and step.
        """
        samples: list[Any] = []
        results: list[Any] = []
        steps = 0
        while steps < self._config.total_train_batch_size:
            answers = self._answers()
            if not answers:
                logger.warning(
                    "No env runner returned samples within sample_timeout_s=%s: is an environment stuck, or "
                    "slower than that?",
                    self._config.sample_timeout_s,
                )
                break
            for answer in answers:
                if isinstance(answer, EnvironmentFault):
                    raise answer
                samples += answer[0]
                results.append(answer[1])
                steps += int(answer[1][NUM_ENV_STEPS_SAMPLED])
        return _newest(as_fragments(samples, self._config), results)

    @property
    def _is_remote(self) -> bool:
        return self._group.num_remote_workers() > 0

    def _answers(self) -> list[Any]:
        if not self._is_remote:
            return [_sample(self._group.local_env_runner)]
        # Those who are still at work are not asked again.
        self.begin()
        answers = self._group.fetch_ready_async_reqs(tags=_TAG, timeout_seconds=self._config.sample_timeout_s)
        return [answer for _, answer in answers]


def _newest(fragments: list[JointFragment], results: list[Any]) -> Sample:
    newest = max((f.weights_seq_no for f in fragments), default=0)
    fresh = [f for f in fragments if f.weights_seq_no == newest]
    stale_steps = sum(map(len, fragments)) - sum(map(len, fresh))
    if stale_steps:
        logger.warning("Dropped %d env steps that older weights had sampled.", stale_steps)
    return Sample(fresh, results, stale_steps)
