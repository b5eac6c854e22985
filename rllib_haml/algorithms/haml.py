"""The training loop of every on-policy algorithm of the package."""

from __future__ import annotations

import logging
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.core import COMPONENT_LEARNER_GROUP
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)
from ray.rllib.utils.typing import ResultDict, StateDict
from ray.tune.result import SHOULD_CHECKPOINT

from rllib_haml.algorithms.evaluation import WholeEpisodes
from rllib_haml.algorithms.every_learner import on_every_learner
from rllib_haml.algorithms.generators import generators, restore_generators
from rllib_haml.algorithms.haml_config import HAMLConfig
from rllib_haml.algorithms.placement import check_placement
from rllib_haml.algorithms.skip_watch import SkipWatch
from rllib_haml.checkpoints.whole import WholeCheckpoints
from rllib_haml.envs.registry import resolve_env
from rllib_haml.learners.configured_learner import NUM_ENV_STEPS_BEFORE
from rllib_haml.sampling.construction import constructors_errors_first, raise_constructor_error
from rllib_haml.sampling.finite_fragments import check_fragments
from rllib_haml.sampling.fragment import JointTrainingData, in_batch_order, reunited
from rllib_haml.sampling.parallel import BatchSampler
from rllib_haml.sampling.team_returns import TeamReturns

logger = logging.getLogger("rllib_haml")

GENERATORS, TEAM_RETURNS = "generators", "team_returns"
CRITIC_UPDATE_TIMER = "critic_update_timer"
NUM_ENV_STEPS_STALE_LIFETIME = "num_env_steps_stale_lifetime"
NUM_ENV_RUNNER_RESTARTS_LIFETIME = "num_env_runner_restarts_lifetime"
NUM_HEALTHY_ENV_RUNNERS = "num_healthy_env_runners"
_FIXED = (
    "Cannot {} module {!r}: who follows which policy is decided once, before training, and the learners' "
    "batch is laid out by it. Build another algorithm, with `policies` and `policy_mapping_fn` of its own."
)


class HAML(WholeCheckpoints, WholeEpisodes, PPO):
    """Samples joint fragments, sweeps over the policies, sends the actors' weights back."""

    # A `HAMLConfig`; RLlib's annotations admit any config, and None for the groups.
    config: Any
    env_runner_group: Any
    learner_group: Any

    @classmethod
    @override(PPO)
    def get_default_config(cls) -> HAMLConfig:
        return HAMLConfig(algo_class=cls)

    @staticmethod
    def _get_env_id_and_creator(env_specifier: Any, config: AlgorithmConfig) -> Any:
        """Any registered name, class or import path, PettingZoo's environments too."""
        return env_specifier, resolve_env(env_specifier)

    @override(PPO)
    def setup(self, config: AlgorithmConfig) -> None:
        check_placement(self.config)
        self._skip_watch = SkipWatch(self.config.max_consecutive_nonfinite_updates)
        self._team_returns = TeamReturns(
            self.config.metrics_num_episodes_for_smoothing, self.config.team_reward, str(self.config.env)
        )
        with constructors_errors_first():
            super().setup(config)
        if not self.config.ignore_env_runner_failures:
            raise_constructor_error(self.env_runner_group)
            raise_constructor_error(self.eval_env_runner_group)
        self.sampler = BatchSampler(
            self.env_runner_group, self.config, lambda: self.restore_env_runners(self.env_runner_group)
        )

    @override(PPO)
    def step(self) -> ResultDict:
        """One iteration.

        Raises:
            NonFiniteUpdates: The iteration before reached `max_consecutive_nonfinite_updates`.
        """
        if self._skip_watch.stuck:
            self._skip_watch.end(self)
        results = super().step()
        # Tune then keeps the last good weights as one of the run's checkpoints, before the next iteration.
        return results | {SHOULD_CHECKPOINT: True} if self._skip_watch.stuck else results

    @override(PPO)
    def training_step(self) -> None:
        steps_before = self._env_steps()
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            sample = self.sampler.collect()
            self.metrics.aggregate(sample.results, key=ENV_RUNNER_RESULTS)
        self.metrics.log_value(NUM_ENV_STEPS_STALE_LIFETIME, sample.stale_steps, reduce="lifetime_sum")
        healthy = self.env_runner_group.num_healthy_remote_workers()
        self.metrics.log_value(NUM_HEALTHY_ENV_RUNNERS, healthy, window=1)
        fragments = sample.fragments
        if not fragments:
            return
        check_fragments(fragments, str(self.config.env))
        self._team_returns.add(fragments)
        self.metrics.log_dict(self._team_returns.summary(), key=ENV_RUNNER_RESULTS, window=1)
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(
                training_data=JointTrainingData(episodes=in_batch_order(reunited(fragments))),
                timesteps={
                    NUM_ENV_STEPS_BEFORE: steps_before,
                    NUM_ENV_STEPS_SAMPLED_LIFETIME: self._env_steps(),
                },
            )
            self.metrics.aggregate(results, key=LEARNER_RESULTS)
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self.sampler.take_weights(self.learner_group)
        # Who samples needs no critic: remote env runners begin the next batch while it is fitted.
        self.sampler.begin()
        with self.metrics.log_time((TIMERS, CRITIC_UPDATE_TIMER)):
            fits = on_every_learner(self, lambda learner: learner.fit_critics())
            self.metrics.aggregate(fits, key=LEARNER_RESULTS)
        self._skip_watch.look(self)

    def _env_steps(self) -> int:
        """Of the whole run so far."""
        return int(self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0))

    @override(PPO)
    def evaluate(self, *args: Any, **kwargs: Any) -> ResultDict:
        """As RLlib's.

        Raises:
            EnvironmentFault: If an environment is at fault, on whatever env runner.
        """
        results = super().evaluate(*args, **kwargs)
        if not results.get(ENV_RUNNER_RESULTS):
            logger.warning(
                "The evaluation gave nothing: its env runners died, or need more than "
                "evaluation_sample_timeout_s=%s.",
                self.config.evaluation_sample_timeout_s,
            )
        return results

    @override(PPO)
    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Brings env runners that Ray has started again up to date, and counts them."""
        restored = super().restore_env_runners(env_runner_group)
        if restored:
            logger.warning("Env runners %s have been started again.", restored)
        self.metrics.log_value(NUM_ENV_RUNNER_RESTARTS_LIFETIME, len(restored), reduce="lifetime_sum")
        return restored

    @override(PPO)
    def add_module(self, module_id: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Raises:
            ValueError: Always: a run has the policies that it began with.
        """
        raise ValueError(_FIXED.format("add", module_id))

    @override(PPO)
    def remove_module(self, module_id: Any, *args: Any, **kwargs: Any) -> Any:
        """
        Raises:
            ValueError: Always: a run has the policies that it began with.
        """
        raise ValueError(_FIXED.format("remove", module_id))

    # Checkpoints.

    @override(PPO)
    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        state = super().get_state(*args, **kwargs)
        return {**state, GENERATORS: generators(), TEAM_RETURNS: self._team_returns.get_state()}

    @override(PPO)
    def set_state(self, state: StateDict) -> None:
        if COMPONENT_LEARNER_GROUP in state:
            self._before_restoring()
        super().set_state(state)
        if COMPONENT_LEARNER_GROUP in state:
            self.sampler.take_weights(self.learner_group)
        if TEAM_RETURNS in state:
            self._team_returns.set_state(state[TEAM_RETURNS])
        if GENERATORS in state:
            restore_generators(self, state[GENERATORS])

    @override(PPO)
    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        super().restore_from_path(path, *args, **kwargs)
        self.sampler.take_weights(self.learner_group)

    @override(WholeCheckpoints)
    def _before_restoring(self) -> None:
        self.accept_any_weights()
        on_every_learner(self, _forget_version)
        self._skip_watch.stuck = ""

    def accept_any_weights(self) -> None:
        """Lets all env runners take the weights that come next, older ones too, and drops what they sample
        with theirs."""
        self.sampler.forget()
        for group in (self.env_runner_group, self.eval_env_runner_group):
            if group is not None:
                group.foreach_env_runner(_forget_version)


def _forget_version(component: Any, *_: Any) -> None:
    """Learners and env runners apply weights only if they are newer than their own."""
    component._weights_seq_no = 0
