"""How a team is evaluated: as by RLlib, but with every episode counted that was begun."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS

from rllib_haml.sampling.evaluation import Played, dealt, play, results_of

logger = logging.getLogger("rllib_haml")
_TAG = "evaluation"


class WholeEpisodes(Algorithm):
    """Evaluates a number of episodes that is settled before they begin.

    RLlib counts those that end first, or before the time is up: the short ones. A duration in timesteps is
    as many episodes as filled it at the last evaluation's mean length; the first one plays an episode in
    each sub-environment beforehand, to learn that length.
    """

    # RLlib's annotations admit any config, and None for the groups.
    config: Any
    evaluation_config: Any
    eval_env_runner_group: Any
    _episode_length: float | None = None

    @override(Algorithm)
    def _evaluate_on_local_env_runner(self, env_runner: Any) -> Any:
        if env_runner.env is None:
            raise ValueError(
                f"evaluate() plays in this process, which has no environment with num_env_runners="
                f"{self.config.num_env_runners}: set evaluation_num_env_runners=1 (or evaluation_interval)."
            )

        def played(episodes: int) -> list[Played]:
            return [self._play({0: episodes})(env_runner)]

        return self._note(played(self._episodes_to_play(lambda: played(env_runner.num_envs))))

    @override(Algorithm)
    def _evaluate_with_fixed_duration(self) -> Any:
        left = self._episodes_to_play(lambda: self._ask(self._an_episode_each()))
        played: list[Played] = []
        # Who died leaves their share to the others.
        while left > 0 and (healthy := self.eval_env_runner_group.healthy_worker_ids()):
            shares = dealt(left, healthy)
            answers = self._ask(shares)
            played += answers
            left -= sum(len(one.returns) for one in answers)
            late = len(shares.keys() & self.eval_env_runner_group.healthy_worker_ids()) - len(answers)
            if late > 0:
                self._tell_of_late(late)
                break
        return self._note(played)

    @override(Algorithm)
    def _evaluate_with_auto_duration(self, parallel_train_future: Any) -> Any:
        group, played, over = self.eval_env_runner_group, list[Played](), False
        ask = self._play(self._an_episode_each())
        group.foreach_env_runner_async(ask, tag=_TAG)
        while group.num_in_flight_async_reqs(tag=_TAG):
            wait = self.config.evaluation_sample_timeout_s if over else 0.01
            answers = group.fetch_ready_async_reqs(tags=_TAG, timeout_seconds=wait)
            # One that an earlier evaluation has not waited for says nothing of these weights.
            played += [one for _, answer in answers if (one := Played(*answer)).number == self.iteration]
            if over and not answers:
                self._tell_of_late(group.num_in_flight_async_reqs(tag=_TAG))
                break
            over = parallel_train_future.done()
            if not over:
                group.foreach_env_runner_async(ask, tag=_TAG)
        return self._note(played)

    def _episodes_to_play(self, first_round: Callable[[], list[Played]]) -> int:
        duration = self.config.evaluation_duration
        if self.config.evaluation_duration_unit == "episodes":
            return duration
        if self._episode_length is None:
            self._episode_length = self._mean_length(first_round())
        return max(1, round(duration / self._episode_length))

    def _mean_length(self, played: list[Played]) -> float:
        """In the steps that `count_steps_by` names."""
        steps = sum(getattr(one, self.config.count_steps_by) for one in played)
        return steps / sum(len(one.returns) for one in played)

    def _an_episode_each(self) -> dict[int, int]:
        """Shares of one episode for each sub-environment of each env runner."""
        config = self.evaluation_config
        return {i + 1: config.num_envs_per_env_runner for i in range(config.num_env_runners)}

    def _play(self, shares: Mapping[int, int]) -> Callable[[Any], Played]:
        return partial(play, shares=shares, explore=self.evaluation_config.explore, number=self.iteration)

    def _ask(self, shares: Mapping[int, int]) -> list[Played]:
        """What the remote env runners gave in time."""
        answers = self.eval_env_runner_group.foreach_env_runner(
            self._play(shares),
            local_env_runner=False,
            remote_worker_ids=list(shares),
            timeout_seconds=self.config.evaluation_sample_timeout_s,
        )
        return [Played(*answer) for answer in answers]

    def _tell_of_late(self, late: int) -> None:
        logger.warning(
            "%d evaluation env runners need more than evaluation_sample_timeout_s=%s and are left out, which "
            "favours short episodes: raise it.",
            late,
            self.config.evaluation_sample_timeout_s,
        )

    def _note(self, played: list[Played]) -> tuple[None, int, int, list[Any]]:
        """Takes the results in, and returns what RLlib expects of an evaluation."""
        if played:
            self._episode_length = self._mean_length(played)
            self.metrics.aggregate(results_of(played), key=(EVALUATION_RESULTS, ENV_RUNNER_RESULTS))
        steps = sum(one.env_steps for one in played), sum(one.agent_steps for one in played)
        return None, *steps, []
