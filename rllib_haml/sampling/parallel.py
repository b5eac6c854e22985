"""One train batch from all env runners."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import ray
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED, WEIGHTS_SEQ_NO

from rllib_haml.sampling.faults import EnvironmentFault, EnvRunnerError
from rllib_haml.sampling.fragment import JointFragment
from rllib_haml.sampling.from_episodes import as_fragments
from rllib_haml.sampling.restarts import NUM_ENV_STEPS_DISCARDED

logger = logging.getLogger("rllib_haml")
_TAG = "train batch"
_LINE_EVERY_S = 30.0
_NO_VERSION = -1
# Ray reserves what a trial asks for as one group, and places all that a dead node held of it again, or none.
_ROOM = (
    "Those that a dead node held come back once there is room for all of them, not one by one; "
    "`placement_strategy: SPREAD` puts them on several nodes from the start."
)


class EnvRunnersLost(RuntimeError):
    """No env runner is alive, and none came back in time; the message says what the last one died of."""


class Answer(NamedTuple):
    """What one env runner gives: its fragments (RLlib's own: episodes), its metrics, its weights' version."""

    samples: list[Any]
    metrics: Any
    version: int

    @property
    def steps(self) -> int:
        return int(self.metrics[NUM_ENV_STEPS_SAMPLED])


def _sample(env_runner: Any) -> Answer:
    return Answer(env_runner.sample(), env_runner.get_metrics(), env_runner._weights_seq_no)


def _sample_with(env_runner: Any, weights: Any) -> Answer | EnvironmentFault | EnvRunnerError:
    """Runs on a remote env runner. Its errors travel as values.

    Raised there, RLlib would end the process and keep the cause, and the next one would raise it again.
    """
    try:
        if weights is not None:
            env_runner.set_state(weights)
        return _sample(env_runner)
    except EnvironmentFault as fault:
        return fault
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        trace = traceback.format_exc()
        return EnvRunnerError(f"An env runner raised {type(root).__name__}: {root}\n{trace}")


class Sample(NamedTuple):
    """What the env runners gave for one train batch.

    Attributes:
        fragments: All sampled with the present weights; none if no env runner answered in time.
        results: Each answer's metrics.
        stale_steps: Env steps dropped because other weights had sampled them.
    """

    fragments: list[JointFragment]
    results: list[Any]
    stale_steps: int


class BatchSampler:
    """Train batches from all env runners, which may work on one before it is asked for.

    Args:
        env_runner_group: Of the algorithm.
        config: The algorithm's.
        restore: Brings env runners that Ray has started again up to date, and returns which they were.
    """

    def __init__(self, env_runner_group: Any, config: Any, restore: Callable[[], list[int]]):
        self._group, self._config, self._restore = env_runner_group, config, restore
        self._weights: Any = None
        self._version = 0
        # Requests' tags: of those that count, and of those given up, whose answers may still come.
        self._tag, self._given_up = f"{_TAG} 0", list[str]()
        self._lost_since: float | None = None
        self._last_error: Exception | None = None

    def take_weights(self, learner_group: Any) -> None:
        """From now on env runners sample with the learners' present weights.

        They travel with each request for samples. RLlib's own way, a call of each env runner beside it, is
        left out in silence where the call before has not been answered yet.
        """
        modules = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        names = [f"{modules}/{name}" for name in self._config.acting_modules()]
        whole = learner_group.get_state(components=names, inference_only=True)[COMPONENT_LEARNER]
        state = {key: whole[key] for key in (COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO)}
        self._version = state[WEIGHTS_SEQ_NO]
        if self._group.local_env_runner is not None:
            self._group.local_env_runner.set_state(state)
        if self._is_remote:
            self._weights = ray.put(state)

    def begin(self) -> None:
        """Lets remote env runners sample the next batch."""
        if self._is_remote:
            self._group.foreach_env_runner_async(
                _sample_with, tag=self._tag, kwargs={"weights": self._weights}
            )

    def forget(self) -> None:
        """Waits for what was begun, and drops it: other weights, or another state, count from now on.

        What comes later than `sample_timeout_s` is dropped when it comes, as stale.
        """
        if self._is_remote:
            self._group.fetch_ready_async_reqs(tags=self._tag, timeout_seconds=self._config.sample_timeout_s)
            self._given_up.append(self._tag)
            self._tag = f"{_TAG} {len(self._given_up)}"

    def collect(self) -> Sample:
        """Samples until the env steps of a train batch are there.

        Joint steps that were dropped with a sub-environment that failed count: no second round is sampled
        to make up for a few.

        Raises:
            EnvironmentFault: If an environment is at fault; it names agent, sub-environment and step.
            EnvRunnerError: If a remote env runner raised anything else.
            EnvRunnersLost: If all env runners died and none came back.
        """
        samples: list[Any] = []
        results: list[Any] = []
        steps = stale = 0
        while steps < self._config.total_train_batch_size:
            self._revive()
            answers = self._answers()
            if not answers and self._has_healthy:
                logger.warning(
                    "No env runner returned samples within sample_timeout_s=%s: is an environment stuck, or "
                    "slower than that?",
                    self._config.sample_timeout_s,
                )
                break
            for answer in answers:
                if not isinstance(answer, Answer):
                    raise answer
                results.append(answer.metrics)
                if answer.version != self._version:
                    stale += answer.steps
                    continue
                samples += answer.samples
                steps += answer.steps + int(answer.metrics.get(NUM_ENV_STEPS_DISCARDED, 0))
        if stale:
            logger.warning("Dropped %d env steps that other weights had sampled.", stale)
        return Sample(as_fragments(samples, self._config), results, stale)

    @property
    def under_way(self) -> int:
        """Requests that count, and that are not answered yet."""
        return self._group.num_in_flight_async_reqs(tag=self._tag)

    @property
    def _is_remote(self) -> bool:
        return self._group.num_remote_workers() > 0

    @property
    def _has_healthy(self) -> bool:
        return not self._is_remote or self._group.num_healthy_remote_workers() > 0

    def _answers(self) -> list[Any]:
        if not self._is_remote:
            return [_sample(self._group.local_env_runner)]
        # Those who are still at work are not asked again.
        self.begin()
        # The group's own method of this name drops the error that an env runner died of.
        replies = self._group._worker_manager.fetch_ready_async_reqs(
            tags=self._tag, timeout_seconds=self._config.sample_timeout_s
        )
        for reply in replies:
            if not reply.ok:
                self._count_out(reply.actor_id, reply.get())
        if any(reply.ok for reply in replies):
            self._lost_since = None
        late = self.under_way
        if late and len(replies):
            logger.warning(
                "%d env runners need more than sample_timeout_s=%s.", late, self._config.sample_timeout_s
            )
        return [*self._answers_given_up(), *(reply.get() for reply in replies if reply.ok)]

    def _answers_given_up(self) -> list[Answer]:
        """Those that have come by now, as of no version."""
        if not self._given_up:
            return []
        late = self._group.fetch_ready_async_reqs(tags=self._given_up, timeout_seconds=0.0)
        return [answer._replace(version=_NO_VERSION) for _, answer in late if isinstance(answer, Answer)]

    def _count_out(self, env_runner: int, error: Exception) -> None:
        """One has died: the others go on, unless nothing was to be tolerated."""
        self._last_error = error
        if not (self._config.restart_failed_env_runners or self._config.ignore_env_runner_failures):
            raise error
        logger.warning(
            "Env runner %d was lost with what it had sampled of this batch; %d of %d are left%s. Cause: %s",
            env_runner,
            self._group.num_healthy_remote_workers(),
            self._group.num_remote_workers(),
            f", Ray starts it again. {_ROOM}" if self._config.restart_failed_env_runners else "",
            error,
        )

    def _revive(self) -> None:
        """Waits until an env runner is alive, for at most `env_runner_restore_timeout_s`.

        The clock runs on until one has given samples: what dies as soon as it samples is not alive.

        Raises:
            EnvRunnersLost: None is.
        """
        limit = self._config.env_runner_restore_timeout_s if self._config.restart_failed_env_runners else 0.0
        told = time.monotonic()
        while not self._has_healthy:
            now = time.monotonic()
            self._lost_since = now if self._lost_since is None else self._lost_since
            if now - self._lost_since >= limit:
                raise EnvRunnersLost(
                    f"All {self._group.num_remote_workers()} env runners are dead, and none gave samples "
                    f"within {limit:g} s (env_runner_restore_timeout_s; 0 without "
                    f"restart_failed_env_runners). {self._cause()}"
                )
            if now - told >= _LINE_EVERY_S:
                told = now
                logger.warning(
                    "No env runner has given samples for %.0f s; the run ends after %g s. %s",
                    now - self._lost_since,
                    limit,
                    self._cause(),
                )
            if not self._restore():
                time.sleep(0.2)

    def _cause(self) -> str:
        replies = self._group._worker_manager.foreach_actor(
            lambda env_runner: env_runner.ping(), healthy_only=False, timeout_seconds=1.0
        )
        errors = [f"Env runner {reply.actor_id}: {reply.get()}" for reply in replies if not reply.ok]
        unknown = f"Ray has not started them again yet: `ray status` tells what it waits for. {_ROOM}"
        died = f" The last one died of: {self._last_error}" if self._last_error else ""
        return (errors[0] if errors else unknown) + died
