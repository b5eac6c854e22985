"""Continuing from a checkpoint equals never having stopped, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fake_envs import NAMES, ScriptedMultiAgentEnv
from running_state import everything

from rllib_haml import HAPPO, HAPPOConfig


def config(**training: Any) -> HAPPOConfig:
    return (
        HAPPOConfig()
        .environment("mamujoco", env_config={"scenario": "HalfCheetah", "agent_conf": "2x3"})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=3)
        .training(
            train_batch_size_per_learner=900,
            num_epochs=2,
            minibatch_size=300,
            entropy_coeff=[[0, 0.01], [9000, 0.0]],
            lr=[[0, 5e-4], [9000, 1e-4]],
            **training,
        )
        .rl_module(model_config={"fcnet_hiddens": [16]})
        .debugging(seed=3)
    )


def metrics(result: dict[str, Any]) -> dict[str, Any]:
    runner = result["env_runners"]
    return {
        "steps": runner["num_env_steps_sampled_lifetime"],
        "return": runner.get("team_return_mean"),
        "entropy_coeff": result["learners"]["agent_0"]["entropy_coeff"],
        "policy_loss": result["learners"]["agent_0"]["policy_loss"],
        "vf_loss": result["learners"]["critic"]["vf_loss"],
        "iteration": result["training_iteration"],
    }


@pytest.fixture(scope="module")
def straight(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Five iterations without a stop, and a checkpoint taken after the second, in mid-episode."""
    path = tmp_path_factory.mktemp("checkpoint")
    algo = config().build_algo()
    for _ in range(2):
        algo.train()
    algo.save_to_path(path)
    results = [metrics(algo.train()) for _ in range(3)]
    state = everything(algo)
    algo.stop()
    return path, results, state


def test_resume_in_mid_episode_is_bit_exact(straight: Any) -> None:
    path, results, state = straight
    torch.manual_seed(12345)  # what the process did before must not matter
    algo = HAPPO.from_checkpoint(path)
    steps = algo.env_runner._episodes.steps
    assert set(steps.tolist()) == {600}, "the checkpoint must lie within an episode of 1000 steps"
    resumed = [metrics(algo.train()) for _ in range(3)]
    assert resumed == results
    assert results[-1]["return"] is not None, "an episode must have ended, its return carried over"
    for name, value in everything(algo).items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)
    algo.stop()


def test_resume_control_without_the_samplers_state(straight: Any) -> None:
    """Control: with the episodes started anew the same checkpoint goes elsewhere."""
    path, results, _ = straight
    algo = config().build_algo()
    algo.restore_from_path(path)
    algo.env_runner._needs_initial_reset = True
    assert [metrics(algo.train()) for _ in range(3)] != results
    algo.stop()


def test_an_older_checkpoint_restores_into_a_running_algorithm(straight: Any) -> None:
    path, results, _ = straight
    algo = config().build_algo()
    for _ in range(4):
        algo.train()
    algo.restore_from_path(path)
    assert metrics(algo.train()) == results[0]
    algo.stop()


def test_resume_keeps_the_mean_outcomes(ray_cluster: Any, tmp_path: Any) -> None:
    """Episodes of five steps: of 0 to 3 wins 1 and 3, the next update adds 4 to 7."""
    script = {"end": "terminated", "equal_rewards": True, "outcomes": NAMES}
    tiny = (
        HAPPOConfig()
        .environment(ScriptedMultiAgentEnv, env_config=script, disable_env_checking=True)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=1)
        .training(train_batch_size_per_learner=20, num_epochs=1, critic_num_epochs=1)
        .rl_module(model_config={"fcnet_hiddens": [4]})
    )
    algo = tiny.build_algo()
    told = algo.train()["env_runners"]["outcome_mean"]
    first = told["number"] - 1.5
    assert told == {"win": 0.5, "number": first + 1.5}
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.stop()
    resumed = HAPPO.from_checkpoint(path)
    told = resumed.train()["env_runners"]["outcome_mean"]
    assert told == {"win": 0.5, "number": pytest.approx(first + 3.5)}
    resumed.stop()
    silent = tiny.copy(copy_frozen=False)
    silent = silent.environment(env_config={**script, "outcomes": ()}).build_algo()
    assert "outcome_mean" not in silent.train()["env_runners"]
    silent.stop()
