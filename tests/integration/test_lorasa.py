"""LoRASA as a whole: the team shares a network, then freezes it and trains an adapter for each agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running_state import assert_same_everywhere

from rllib_haml import LoRASA, LoRASAConfig, MAPPOConfig
from rllib_haml.checkpoints.read import CheckpointError

STEPS = 120  # of one iteration


def config(adapters_from: Any = 2 * STEPS, model: dict[str, Any] | None = None, **training: Any) -> Any:
    return (
        LoRASAConfig()
        .environment("mpe", env_config={"scenario": "simple_spread_v3", "local_ratio": 0.0})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(
            train_batch_size_per_learner=STEPS,
            num_epochs=2,
            critic_num_epochs=2,
            lora={"r": 2},
            adapters_from=adapters_from,
            **training,
        )
        .rl_module(model_config={"fcnet_hiddens": [16], **(model or {})})
        .debugging(seed=3)
    )


def weights(algo: Any) -> dict[str, dict[str, np.ndarray]]:
    """Of each module on the learner, copied."""
    modules = algo.learner_group._learner.module
    return {
        name: {key: value.numpy().copy() for key, value in module.state_dict().items()}
        for name, module in modules.items()
    }


def moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {
        name
        for name, tensors in before.items()
        if any(not np.array_equal(value, after[name][key]) for key, value in tensors.items())
    }


AGENTS = {"agent_0", "agent_1", "agent_2"}


def test_first_the_backbone_moves_and_then_the_adapters(ray_cluster: None) -> None:
    """To the last bit; the critic moves on, with the optimizer that it had."""
    algo = config().build_algo()
    learner = algo.learner_group._learner
    start = weights(algo)
    results = [algo.train() for _ in range(2)]
    shared = weights(algo)
    assert moved(start, shared) == {"backbone", "critic"}
    taken = _steps_of(learner.get_optimizer("critic"))
    results += [algo.train() for _ in range(2)]
    assert moved(shared, weights(algo)) == AGENTS | {"critic"}
    assert _steps_of(learner.get_optimizer("critic")) == 2 * taken
    assert [result["adapters_train"] for result in results] == [0.0, 0.0, 1.0, 1.0]
    assert {"compound_ratio_mean", "surrogate_gain"} <= set(results[-1]["learners"]["agent_1"])
    for name, tensors in weights(algo).items():
        if name != "critic":
            sampler = algo.env_runner.module[name].state_dict()
            assert all(np.array_equal(sampler[key].numpy(), value) for key, value in tensors.items())
    algo.stop()


def test_a_plateau_of_the_teams_return_begins_the_adapters(ray_cluster: None) -> None:
    """With gains that no run makes: the first return counts as one, then patience ends after two."""
    algo = config("plateau", plateau_patience=2, plateau_min_gain=10.0).build_algo()
    results = [algo.train() for _ in range(3)]
    shared = weights(algo)
    results.append(algo.train())
    assert [result["adapters_train"] for result in results] == [0.0, 0.0, 0.0, 1.0]
    assert moved(shared, weights(algo)) == AGENTS | {"critic"}
    algo.stop()


def _steps_of(optimizer: torch.optim.Optimizer) -> int:
    return int(next(iter(optimizer.state.values()))["step"])


@pytest.mark.parametrize("model", [{}, {"use_gru": True, "lstm_cell_size": 8}], ids=["mlp", "gru"])
def test_sampler_and_learner_agree_in_both_phases(ray_cluster: None, model: dict[str, Any]) -> None:
    """An adapter acts as it is trained: merged and stacked, or through its backbone."""
    algo = config(STEPS, model).build_algo()
    for phase in ({"backbone"}, AGENTS):
        learners = algo.train()["learners"]
        assert all(learners[name]["behaviour_gap"] < 1e-4 for name in phase)
    for name in sorted(AGENTS):
        alone = algo.get_module(name)
        assert torch.isfinite(torch.cat([p.flatten() for p in alone.weights().values()])).all()
    algo.stop()


@pytest.mark.parametrize("stop_after", [1, 2, 3], ids=["before", "at", "after"])
def test_resuming_is_exact(ray_cluster: None, tmp_path: Path, stop_after: int) -> None:
    """Before, at and after the switch: four iterations with a stop equal four without."""
    whole = config().build_algo()
    for _ in range(stop_after):
        whole.train()
    checkpoint = whole.save_to_path(str(tmp_path / "checkpoint"))
    for _ in range(4 - stop_after):
        whole.train()
    resumed = LoRASA.from_checkpoint(checkpoint)
    for _ in range(4 - stop_after):
        resumed.train()
    assert_same_everywhere(whole, resumed)
    whole.stop()
    resumed.stop()


def test_mappos_shared_policy_can_be_the_backbone(ray_cluster: None, tmp_path: Path) -> None:
    mappo = (
        MAPPOConfig()
        .environment("mpe", env_config={"scenario": "simple_spread_v3", "local_ratio": 0.0})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=STEPS, share_parameters=True)
        .rl_module(model_config={"fcnet_hiddens": [16]})
        .debugging(seed=5)
        .build_algo()
    )
    mappo.train()
    path = mappo.save_to_path(str(tmp_path / "mappo"))
    trained, critic = weights(mappo)["shared"], weights(mappo)["critic"]
    mappo.stop()
    algo = config(0, backbone_checkpoint=str(path)).build_algo()
    taken = weights(algo)["critic"]
    assert all(np.array_equal(taken[key], value) for key, value in critic.items())
    assert {"value_norm.mean_sum", "network.1.weight"} <= taken.keys()
    assert algo.train()["adapters_train"] == 1.0
    found = weights(algo)["backbone"]
    assert all(np.array_equal(found[key], value) for key, value in trained.items())
    algo.stop()
    with pytest.raises(ValueError, match="fcnet_activation was 'relu' and is 'tanh'"):
        config(0, {"fcnet_activation": "tanh"}, backbone_checkpoint=str(path)).build_algo()
    with pytest.raises(ValueError, match="is no checkpoint of an algorithm"):
        config(0, backbone_checkpoint=str(tmp_path)).build_algo()
    weights_file = next(Path(path).glob("learner_group/learner/rl_module/shared/module_state.*"))
    weights_file.write_bytes(weights_file.read_bytes()[:-1])
    for key in ("backbone_checkpoint", "adapters_checkpoint"):
        with pytest.raises(CheckpointError, match="module_state"):
            config("plateau", **{key: str(path)}).build_algo()


@pytest.mark.parametrize("share, warned", [(0.9, True), (0.4, False)])
def test_a_run_that_ends_before_its_adapters_train_says_so(
    ray_cluster: None, caplog: pytest.LogCaptureFixture, share: float, warned: bool
) -> None:
    algo = config(share, total_env_steps=2 * STEPS).build_algo()
    for _ in range(2):
        algo.train()
    algo.stop()
    assert (f"ends after {2 * STEPS} env steps, before its adapters trained" in caplog.text) == warned
