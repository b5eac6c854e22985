"""A critic that rests with the backbone, but for a low-rank difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from running_state import assert_same_everywhere
from test_lorasa import STEPS, config, weights

from rllib_haml import LoRASA
from rllib_haml.modules.critic import Critic

CRITIC_LORA = {"r": 2, "lora_alpha": 2}
MEMORY = {"use_gru": True, "lstm_cell_size": 8}


def critic_moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """`network` or `lora`, without the value normaliser's statistics."""
    names = (name for name in before["critic"] if not name.startswith("value_norm"))
    changed = (n for n in names if not np.array_equal(before["critic"][n], after["critic"][n]))
    return {"lora" if name.startswith("lora") else "network" for name in changed}


@pytest.mark.parametrize("model", [{}, MEMORY], ids=["mlp", "gru"])
def test_first_its_network_trains_and_then_the_difference(ray_cluster: None, model: dict[str, Any]) -> None:
    """To the last bit, in both directions."""
    algo = config(STEPS, model, critic_lora=CRITIC_LORA).build_algo()
    seen = []
    for _ in range(3):
        before = weights(algo)
        losses = algo.train()["learners"]["critic"]
        assert np.isfinite(losses["vf_loss"])
        seen.append(critic_moved(before, weights(algo)))
    assert seen == [{"network"}, {"lora"}, {"lora"}]
    algo.stop()


def test_control_without_it_all_of_the_critic_trains(ray_cluster: None) -> None:
    algo = config(0).build_algo()
    before = weights(algo)
    algo.train()
    assert critic_moved(before, weights(algo)) == {"network"}
    algo.stop()


@pytest.mark.parametrize("stop_after", [1, 2], ids=["at the switch", "after it"])
def test_resuming_is_exact(ray_cluster: None, tmp_path: Path, stop_after: int) -> None:
    whole = config(STEPS, critic_lora=CRITIC_LORA).build_algo()
    for _ in range(stop_after):
        whole.train()
    checkpoint = whole.save_to_path(str(tmp_path / "checkpoint"))
    resumed = LoRASA.from_checkpoint(checkpoint)
    for _ in range(3 - stop_after):
        whole.train()
        resumed.train()
    assert_same_everywhere(whole, resumed)
    whole.stop()
    resumed.stop()


@pytest.mark.parametrize("memory", [{}, {"use_gru": True, "lstm_cell_size": 6}], ids=["mlp", "gru"])
def test_values_are_those_of_the_sum(memory: dict[str, Any]) -> None:
    """Against a critic whose weights are W + ΔW, formed by hand; zero at first."""

    def make(**more: Any) -> Any:
        torch.manual_seed(0)
        return Critic(
            observation_space=gym.spaces.Box(-1, 1, (5,)),
            action_space=gym.spaces.Discrete(1),
            model_config={"fcnet_hiddens": [8], **memory, **more},
        )

    plain, adapted = make(), make(lora={"r": 2, "lora_alpha": 6})
    inputs = torch.rand(3, 4, 5) if memory else torch.rand(3, 5)

    def values(critic: Any) -> torch.Tensor:
        if not memory:
            return critic.normalised_values(inputs)
        state = {part: zeros.expand(3, -1) for part, zeros in critic.get_initial_state().items()}
        return critic.unroll(inputs, state)[0]

    adapted.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(values(adapted), values(plain))
    with torch.no_grad():
        for parameter in adapted.lora.parameters():
            parameter.normal_()
        for target in adapted.lora.targets:
            weight = plain.get_parameter(target.name)
            if target.rank is None:
                weight += adapted.lora.dense(target)
            else:
                a, b = adapted.lora.factors(target)
                weight += 3 * b @ a
    torch.testing.assert_close(values(adapted), values(plain))
