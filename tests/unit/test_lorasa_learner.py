"""LoRASA's learner: whose parameters each optimizer holds, and what the switch leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fragments import make_fragment
from gymnasium import spaces
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.tune.registry import register_env

from rllib_haml import LoRASAConfig
from rllib_haml.learners.connector import JointBatchConnector


class Many(MultiAgentEnv):
    """Agents whose names begin alike; it is never played."""

    def __init__(self, count: int):
        super().__init__()
        self.possible_agents = self.agents = [f"agent_{i}" for i in range(count)]
        self.observation_spaces = dict.fromkeys(self.agents, spaces.Box(-1, 1, (3,), np.float32))
        self.action_spaces = dict.fromkeys(self.agents, spaces.Discrete(2))


def make_learner(count: int, policies_to_train: list[str] | None = None, **training: Any) -> Any:
    register_env("many", lambda given: Many(**given))
    config = (
        LoRASAConfig()
        .environment("many", env_config={"count": count})
        .training(**{"lora": {"r": 1}, "num_epochs": 1, "critic_num_epochs": 1, "lr": 1e-2} | training)
        .rl_module(model_config={"fcnet_hiddens": [4]})
        .debugging(seed=1)
    )
    if policies_to_train is not None:
        config.multi_agent(policies_to_train=policies_to_train)
    config.validate()
    return config.build_learner()


def update(learner: Any) -> None:
    made = [make_fragment(6, seed, team=learner.config.team, source=(0, seed)) for seed in range(2)]
    connector = JointBatchConnector(learner.config.team, "shared", "cpu", "many")
    learner._update(connector(rl_module=None, batch={}, episodes=made))
    learner.fit_critics()


def state(learner: Any, name: str) -> dict[str, torch.Tensor]:
    """Weights and buffers of a module, and the moments of its optimizers."""
    found = {key: value.clone() for key, value in learner.module[name].state_dict().items()}
    for module_id, optimizer in learner.get_optimizers_for_module(name):
        for index, moments in optimizer.state_dict()["state"].items():
            found |= {f"{module_id}/{index}/{key}": torch.as_tensor(v).clone() for key, v in moments.items()}
    return found


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> list[str]:
    assert before.keys() <= after.keys()
    return [key for key, value in before.items() if not torch.equal(value, after[key])]


@pytest.mark.parametrize("count", [2, 11, 27])
def test_each_adapter_moves_by_its_own_optimizer_alone(count: int) -> None:
    """agent_1 is not agent_10: to the last bit, also with Adam's moments of everyone else."""
    learner = make_learner(count, adapters_from=0, policies_to_train=["agent_1"])
    learner.begin_adapters()
    before = {name: state(learner, name) for name, _ in learner.module.items()}
    update(learner)
    for name, was in before.items():
        assert bool(changed(was, state(learner, name))) == (name in ("agent_1", "critic")), name


@pytest.mark.parametrize("count", [11, 27])
def test_optimizers_of_a_whole_team(count: int) -> None:
    learner = make_learner(count, adapters_from=0)
    owners: dict[int, str] = {}
    for name, module in learner.module.items():
        for parameter in module.parameters():
            assert owners.setdefault(id(parameter), name) == name
    for name, _ in learner.module.items():
        held = [p for group in learner.get_optimizer(name).param_groups for p in group["params"]]
        assert len(held) == len({id(p) for p in held}) == len(list(learner.module[name].parameters()))
        assert {owners[id(p)] for p in held} == {name}


@pytest.mark.parametrize(
    "training",
    [{}, {"adapter_mode": "joint"}, {"adapter_mode": "continue_shared"}, {"critic_lora": {"r": 1}}],
    ids=["frozen", "joint", "continue_shared", "critic_lora"],
)
def test_the_switch_leaves_the_critic_as_it_is(training: dict[str, Any]) -> None:
    """Bit for bit: network, value normaliser, and Adam's moments."""
    learner = make_learner(2, **training)
    fresh = state(learner, "critic")
    for _ in range(2):
        update(learner)
    before = state(learner, "critic")
    learnt = {key.partition(".")[0] for key in changed(fresh, before)}
    assert {"network", "value_norm"} <= learnt, "control"
    assert any("exp_avg" in key for key in before)
    learner.begin_adapters()
    after = state(learner, "critic")
    assert before.keys() == after.keys()
    assert not changed(before, after)
