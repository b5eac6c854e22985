"""HAPPO and MAPPO inside RLlib: what users of RLlib configure works as they know it."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from fake_envs import ScriptedMultiAgentEnv, ScriptedParallelEnv
from ray import tune
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.tune.registry import register_env

from rllib_haml import HAPPO, HAPPOConfig, MAPPOConfig
from rllib_haml.modules.critic import CRITIC
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.joint_env_runner import JointEnvRunner
from rllib_haml.sampling.parallel_team_env import ParallelTeamEnv


def small(config: Any, **script: Any) -> Any:
    """The scripted team (unequal spaces, dying agents, …) with little to compute."""
    register_env("scripted", lambda env_config: ScriptedMultiAgentEnv(**env_config))
    return quick(config.environment("scripted", env_config={"equal_rewards": True, **script}))


def quick(config: Any) -> Any:
    return (
        config.env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=40, num_epochs=2, critic_num_epochs=2, minibatch_size=16)
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .debugging(seed=1)
    )


def weights(algo: Any) -> dict[str, dict[str, np.ndarray]]:
    module = algo.learner_group._learner.module
    return {name: {k: v.numpy().copy() for k, v in m.state_dict().items()} for name, m in module.items()}


def moved(before: Any, after: Any) -> set[str]:
    return {
        name for name in before if any((before[name][key] != after[name][key]).any() for key in before[name])
    }


def test_one_policy_per_agent_and_a_critic_that_stays_on_the_learner(ray_cluster: Any) -> None:
    algo = small(HAPPOConfig()).build_algo()
    assert algo.config.env_runner_cls is JointEnvRunner
    start = weights(algo)
    assert set(start) == {"scout", "carrier", "anchor", CRITIC}
    result = algo.train()
    assert moved(start, weights(algo)) == set(start)
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == 40
    assert set(algo.env_runner.module.keys()) == {"scout", "carrier", "anchor"}
    for name in ("scout", "carrier", "anchor"):
        for key, value in algo.env_runner.module[name].state_dict().items():
            np.testing.assert_array_equal(value.numpy(), weights(algo)[name][key])
    algo.stop()


def test_what_a_weight_sync_sends_are_the_actors_bytes(ray_cluster: Any) -> None:
    algo = small(HAPPOConfig()).build_algo()
    names = ["learner/rl_module/" + name for name in sorted(algo.config.policies)]
    state = algo.learner_group.get_state(components=names, inference_only=True)["learner"]["rl_module"]
    sent = sum(array.nbytes for module in state.values() for array in module.values())
    held = sum(array.nbytes for n, m in weights(algo).items() if n != CRITIC for array in m.values())
    assert sent == held > 0
    algo.stop()


def test_frozen_policies_play_but_do_not_move(ray_cluster: Any) -> None:
    config = small(HAPPOConfig())
    config.multi_agent(policies_to_train=["carrier"])
    algo = config.build_algo()
    start = weights(algo)
    algo.train()
    assert moved(start, weights(algo)) == {"carrier", CRITIC}
    algo.stop()


def test_an_rlmodule_of_rllibs_ppo_works_as_an_actor(ray_cluster: Any) -> None:
    config = small(HAPPOConfig()).rl_module(
        rl_module_spec=RLModuleSpec(module_class=DefaultPPOTorchRLModule), model_config={"fcnet_hiddens": [8]}
    )
    algo = config.build_algo()
    start = weights(algo)
    result = algo.train()
    assert {"scout", "carrier", "anchor", CRITIC} == moved(start, weights(algo))
    assert float(result["learners"]["scout"]["behaviour_gap"]) < 1e-4
    algo.stop()


class CountEpisodes(RLlibCallback):
    """An episode callback, which only RLlib's own env runner can serve."""

    ended = 0

    def on_episode_end(self, **kwargs: Any) -> None:
        CountEpisodes.ended += 1


@pytest.mark.parametrize("kind", [ScriptedMultiAgentEnv, ScriptedParallelEnv])
def test_episode_callbacks_bring_rllibs_env_runner_and_the_same_results(
    ray_cluster: Any, kind: type, caplog: pytest.LogCaptureFixture
) -> None:
    config = small(HAPPOConfig(), deaths={"carrier": 3}).callbacks(CountEpisodes)
    wrap = ParallelTeamEnv if kind is ScriptedParallelEnv else lambda env: env
    register_env("scripted", lambda env_config: wrap(kind(**env_config)))
    algo = config.build_algo()
    assert algo.config.env_runner_cls is MultiAgentEnvRunner
    assert "on_episode_end" in caplog.text
    CountEpisodes.ended = 0
    start = weights(algo)
    result = algo.train()["env_runners"]
    assert CountEpisodes.ended == 8  # 40 steps, episodes of five
    assert moved(start, weights(algo)) == set(start)
    # The first agent's reward is 10 · step + 1000 · episode, and everyone gets the same.
    assert (result["team_return_mean"] - 150) % 1000 == pytest.approx(0, abs=500)
    assert result["team_return_min"] % 1000 == 150
    algo.stop()


class MasksInInfos(ScriptedMultiAgentEnv):
    """Tells a mask, with a step's observations, where RLlib's own env runner does not look."""

    def __init__(self, told_at: int, **script: Any):
        super().__init__(**script)
        self.told_at = told_at

    def reset(self, **kwargs: Any) -> Any:
        self.steps = 0
        obs, _ = super().reset(**kwargs)
        return obs, self._mask()

    def step(self, action_dict: Any) -> Any:
        self.steps += 1
        *rest, _ = super().step(action_dict)
        return (*rest, self._mask())

    def _mask(self) -> Any:
        mask = {"scout": {"action_mask": np.array([0, 1], np.int8)}}
        return mask if self.steps == self.told_at else {}


@pytest.mark.parametrize("told_at", [0, 3])
def test_rllibs_env_runner_refuses_masks_that_it_would_not_obey(ray_cluster: Any, told_at: int) -> None:
    config = small(HAPPOConfig(), told_at=told_at).callbacks(CountEpisodes)
    register_env("scripted", lambda env_config: MasksInInfos(**env_config))
    algo = config.build_algo()
    with pytest.raises(ValueError, match="'scout' has its action mask in infos"):
        algo.train()
    algo.stop()


def test_team_return_counts_a_shared_reward_once(ray_cluster: Any) -> None:
    algo = small(HAPPOConfig()).build_algo()
    result = algo.train()["env_runners"]
    assert result["team_return_min"] == 10 + 20 + 30 + 40 + 50
    assert result["episode_return_min"] == 3 * 150
    algo.stop()


def test_evaluation_reports_the_team_return(ray_cluster: Any) -> None:
    config = small(HAPPOConfig()).evaluation(
        evaluation_interval=1, evaluation_num_env_runners=0, evaluation_duration=4
    )
    algo = config.build_algo()
    result = algo.train()["evaluation"]["env_runners"]
    assert result["num_episodes"] == 4
    assert result["team_return_min"] == 150
    algo.stop()


def test_mappo_with_one_shared_network(ray_cluster: Any) -> None:
    config = quick(MAPPOConfig().environment("matrix_game", env_config={"game": "anti_coordination"}))
    algo = config.training(share_parameters=True).build_algo()
    assert set(weights(algo)) == {"shared", CRITIC}
    start = weights(algo)
    algo.train()
    assert moved(start, weights(algo)) == {"shared", CRITIC}
    algo.stop()


def test_mappo_with_one_network_refuses_unequal_spaces(ray_cluster: Any) -> None:
    with pytest.raises(ValueError, match="'scout' and 'carrier' share the policy 'shared'"):
        small(MAPPOConfig()).training(share_parameters=True).build_algo()


def test_tune_finds_the_algorithm_by_its_name(ray_cluster: Any, tmp_path: Any) -> None:
    tuner = tune.Tuner(
        "HAPPO",
        param_space=quick(HAPPOConfig().environment("matrix_game", env_config={"game": "climbing"})),
        run_config=tune.RunConfig(stop={"training_iteration": 2}, storage_path=str(tmp_path), verbose=0),
    )
    (result,) = tuner.fit()
    assert result.error is None
    assert result.metrics is not None
    assert result.metrics["training_iteration"] == 2
    assert np.isfinite(result.metrics["env_runners"]["team_return_mean"])


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "raises in step": ({"raises": (3, 2)}, "the simulator lost its licence"),
    "raises in reset": ({"raises": (3, 0)}, "the simulator lost its licence"),
    "NaN observation": ({"nan_obs": ("carrier", 2)}, "'carrier'.*nan"),
    "NaN reward": ({"nan_reward": ("anchor", 3), "equal_rewards": False}, "'anchor'.*nan"),
    "unequal rewards": ({"equal_rewards": False}, "team_reward"),
}


@pytest.mark.parametrize(("script", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_in_an_environment_is_an_error_with_its_cause(
    ray_cluster: Any, script: dict[str, Any], message: str
) -> None:
    algo = small(HAPPOConfig(), **script).build_algo()
    with pytest.raises(EnvironmentFault, match=message):
        algo.train()
    algo.stop()


def test_a_fault_on_a_remote_env_runner_arrives_within_seconds(ray_cluster: Any) -> None:
    algo = small(HAPPOConfig(), nan_obs=("carrier", 2)).env_runners(num_env_runners=1).build_algo()
    start = time.monotonic()
    with pytest.raises(EnvironmentFault, match=r"'carrier'.*nan"):
        algo.train()
    assert time.monotonic() - start < 50, "RLlib lets a failing env runner sleep for a minute"
    algo.stop()


def test_a_gpu_that_is_not_there_is_an_error(ray_cluster: Any) -> None:
    with pytest.raises(ValueError, match="num_gpus_per_learner=1"):
        small(HAPPOConfig()).learners(num_learners=0, num_gpus_per_learner=1).build_algo()


def test_learners_that_ask_for_gpus_of_a_cluster_without_are_an_error(ray_cluster: Any) -> None:
    with pytest.raises(ValueError, match="the algorithm asks for 2 GPU, and Ray has 0"):
        small(HAPPOConfig()).learners(num_learners=2, num_gpus_per_learner=1).build_algo()


def test_after_a_fault_the_last_checkpoint_continues(ray_cluster: Any, tmp_path: Any) -> None:
    algo = small(HAPPOConfig(), raises=(5, 2)).build_algo()
    algo.train()  # 40 steps: episodes 0 to 3 of both sub-environments
    algo.save_to_path(tmp_path)
    with pytest.raises(EnvironmentFault, match="lost its licence"):
        algo.train()
    algo.stop()
    restored = HAPPO.from_checkpoint(tmp_path)
    assert restored.training_iteration == 1
    assert moved(weights(restored), weights(small(HAPPOConfig()).build_algo())) != set()
    restored.stop()


def test_an_unknown_key_of_model_config_is_an_error_before_anything_starts(ray_cluster: Any) -> None:
    config = small(HAPPOConfig()).env_runners(num_env_runners=2).rl_module(model_config={"fcnet_hidden": [8]})
    with pytest.raises(ValueError, match="fcnet_hiddens"):
        config.build_algo()


class TextActions(ScriptedMultiAgentEnv):
    """An agent whose actions no head of the package supports."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(equal_rewards=True)
        self.action_spaces["carrier"] = gym.spaces.Text(3)


def test_an_action_space_without_a_head_is_an_error_before_anything_starts(ray_cluster: Any) -> None:
    config = quick(HAPPOConfig().environment(TextActions)).env_runners(num_env_runners=2)
    with pytest.raises(ValueError, match=r"'carrier'.*Text\(.*has no head"):
        config.build_algo()
