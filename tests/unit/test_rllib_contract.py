"""The private parts of RLlib on which this package leans; a Ray that lacks one fails here, by its name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import ray.rllib
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.utils.schedules.scheduler import Scheduler
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_haml.algorithms.sampler_choice import EPISODE_CALLBACKS

# Method → the parameters by which this package calls or overrides it.
METHODS: dict[Callable[..., Any], tuple[str, ...]] = {
    MultiAgentEnvRunner._sample: (
        "num_timesteps", "num_episodes", "explore", "random_actions", "force_reset",
    ),
    MultiAgentEnvRunner._log_episode_metrics: ("length", "ret", "sec", "agents", "modules", "agent_steps"),
    MultiAgentEnvRunner._check_component: ("name", "components", "not_components"),
    MultiAgentEnvRunner.get_state: ("components", "not_components"),
    MultiAgentEnvRunner.set_state: ("state",),
    MultiAgentEnvRunner.make_env: (),
    MultiAgentEnvRunner.stop: (),
    make_callback: ("callbacks_objects", "callbacks_functions", "kwargs"),
    TorchLearner._update: ("batch",),
    TorchLearner._make_modules_ddp_if_necessary: (),
    TorchLearner.build: (),
    Learner.should_module_be_updated: ("module_id", "multi_agent_batch"),
    Learner.configure_optimizers_for_module: ("module_id", "config"),
    Learner.before_gradient_based_update: ("timesteps",),
    Learner.register_optimizer: ("module_id", "optimizer", "params", "lr_or_lr_schedule"),
    Learner.get_optimizer: ("module_id",),
    Learner.update: ("training_data", "timesteps"),
    LearnerGroup.update: ("training_data", "timesteps"),
    LearnerGroup.foreach_learner: ("func",),
    LearnerGroup.get_state: ("components",),
    EnvRunnerGroup.foreach_env_runner: (
        "func", "local_env_runner", "remote_worker_ids", "timeout_seconds",
    ),
    EnvRunnerGroup.foreach_env_runner_async: ("func", "tag"),
    EnvRunnerGroup.fetch_ready_async_reqs: ("tags", "timeout_seconds"),
    EnvRunnerGroup.num_in_flight_async_reqs: ("tag",),
    EnvRunnerGroup.healthy_worker_ids: (),
    TrainingData.shard: ("num_shards", "len_lookback_buffer"),
    Algorithm._get_env_id_and_creator: ("env_specifier", "config"),
    Algorithm.restore_from_path: ("path",),
    Algorithm._evaluate_on_local_env_runner: ("env_runner",),
    Algorithm._evaluate_with_fixed_duration: (),
    Algorithm._evaluate_with_auto_duration: ("parallel_train_future",),
    PPO.setup: ("config",),
    PPO.training_step: (),
    AlgorithmConfig.get_multi_rl_module_spec: ("env", "spaces", "inference_only"),
    AlgorithmConfig.build_learner_connector: ("input_observation_space", "input_action_space", "device"),
    AlgorithmConfig.get_config_for_module: ("module_id",),
    AlgorithmConfig.get_default_rl_module_spec: (),
    AlgorithmConfig.get_default_learner_class: (),
    MultiRLModuleSpec.add_modules: ("module_specs",),
    RLModule.get_state: ("inference_only",),
    RLModule.get_train_action_dist_cls: (),
    InferenceOnlyAPI.get_non_inference_attributes: (),
    Scheduler.update: ("timestep",),
    Scheduler.get_current_value: (),
    MultiAgentEpisode.env_steps: (),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__qualname__)
def test_a_method_takes_the_parameters_that_are_used(method: Callable[..., Any]) -> None:
    parameters = inspect.signature(method).parameters
    assert set(METHODS[method]) <= set(parameters), f"it has {sorted(parameters)}"


# Class → attributes that its `__init__` or `build` sets.
ASSIGNED: dict[type, tuple[str, ...]] = {
    MultiAgentEnvRunner: (
        "_weights_seq_no", "_needs_initial_reset", "_callbacks", "_device", "num_env_steps_sampled_lifetime",
    ),
    Learner: ("_weights_seq_no", "_module_optimizers", "_named_optimizers", "_device"),
}  # fmt: skip


@pytest.mark.parametrize("kind, name", [(k, n) for k, names in ASSIGNED.items() for n in names])
def test_an_instance_has_the_attribute(kind: type, name: str) -> None:
    assert f"self.{name}" in inspect.getsource(kind)


@pytest.mark.parametrize(
    "name",
    [
        "_dont_auto_sync_env_runner_states",
        "_env_to_module_connector",
        "_module_to_env_connector",
        "_learner_connector",
        "_rl_module_spec",
        "_model_config",
        "callbacks_class",
        "count_steps_by",
        "env_runner_cls",
        "in_evaluation",
        "sample_timeout_s",
        "metrics_num_episodes_for_smoothing",
        "policies_to_train",
        *(f"callbacks_{name}" for name in EPISODE_CALLBACKS),
        "callbacks_on_environment_created",
    ],
)
def test_a_config_has_the_attribute(name: str) -> None:
    assert name in vars(PPOConfig())


@pytest.mark.parametrize("name", ["_model_config_auto_includes", "is_multi_agent", "total_train_batch_size"])
def test_a_config_has_the_property(name: str) -> None:
    assert isinstance(inspect.getattr_static(PPOConfig, name), property)


@pytest.mark.parametrize("name", [*EPISODE_CALLBACKS, "on_environment_created"])
def test_a_callback_has_the_hook(name: str) -> None:
    assert callable(getattr(RLlibCallback, name))


def test_weights_are_numbered_by_the_update_that_made_them() -> None:
    """The learner counts before it updates: fragments and update agree on the number."""
    source = inspect.getsource(Learner.update)
    assert source.index("self._weights_seq_no += 1") < source.index("self._update(")


def test_training_data_is_a_dataclass_with_episodes() -> None:
    assert "episodes" in {field.name for field in dataclasses.fields(TrainingData)}


def test_an_algorithm_asks_the_class_for_its_environment() -> None:
    assert isinstance(inspect.getattr_static(Algorithm, "_get_env_id_and_creator"), staticmethod)
    assert "self._get_env_id_and_creator(" in inspect.getsource(Algorithm.__init__)


def test_the_registry_can_be_asked() -> None:
    assert not _global_registry.contains(ENV_CREATOR, "an environment that nobody registered")


def test_the_whole_update_is_one_call() -> None:
    """Without `num_epochs` and `minibatch_size` RLlib hands over the batch once."""
    defaults = inspect.signature(Learner.update).parameters
    assert defaults["num_epochs"].default == 1
    assert defaults["minibatch_size"].default is None


def test_ray_is_of_the_supported_series() -> None:
    assert ray.__version__.startswith("2.60.")
