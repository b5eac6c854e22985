"""Adapters are saved from a running team and loaded into it, and it acts and trains on with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_teams import refactored
from ray.rllib.core.columns import Columns
from running_state import assert_same_everywhere
from test_lorasa import STEPS, config, moved, weights

from rllib_haml import LoRASA


@pytest.fixture(scope="module")
def running(ray_cluster: None) -> Any:
    algo = config(0, lr=1e-2).build_algo()
    algo.train()
    yield algo
    algo.stop()


def log_probs(policy: Any, fragment: Any, agent: str) -> np.ndarray:
    """Of what the agent did, under `policy`."""
    with torch.no_grad():
        out = policy.forward_exploration({Columns.OBS: torch.as_tensor(fragment.obs[agent][:-1])})
        distribution = policy.get_exploration_action_dist_cls().from_logits(out[Columns.ACTION_DIST_INPUTS])
        return distribution.logp(torch.as_tensor(fragment.actions[agent])).numpy()


def test_the_next_actions_follow_the_new_adapter(running: Any, tmp_path: Path) -> None:
    policies = {name: running.get_module(name).merged() for name in ("agent_0", "agent_1", "agent_2")}
    before, learner = weights(running), running.learner_group._learner
    running.save_adapter("agent_1", tmp_path / "second")
    running.load_adapter("agent_0", tmp_path / "second")
    assert moved(before, weights(running)) == {"agent_0"}, "control: nobody else's changes by a bit"
    assert not learner.get_optimizer("agent_0").state
    assert learner.get_optimizer("agent_2").state
    acts_like = {"agent_0": "agent_1", "agent_1": "agent_1", "agent_2": "agent_2"}
    fragments = running.sampler.collect().fragments
    for agent, policy in acts_like.items():
        found = np.concatenate([log_probs(policies[policy], f, agent) for f in fragments])
        expected = np.concatenate([f.logp[agent] for f in fragments])
        np.testing.assert_allclose(found, expected, atol=1e-5)
    former = np.concatenate([log_probs(policies["agent_0"], f, "agent_0") for f in fragments])
    assert np.abs(former - np.concatenate([f.logp["agent_0"] for f in fragments])).max() > 1e-3, "control"
    learners = running.train()["learners"]
    assert all(learners[agent]["behaviour_gap"] < 1e-4 for agent in acts_like)
    assert learner.get_optimizer("agent_0").state


def test_resuming_after_a_swap_is_exact(ray_cluster: None, tmp_path: Path) -> None:
    whole = config(0, lr=1e-2).build_algo()
    whole.train()
    whole.save_adapter("agent_1", tmp_path / "second")
    whole.load_adapter("agent_0", tmp_path / "second")
    resumed = LoRASA.from_checkpoint(whole.save_to_path(str(tmp_path / "checkpoint")))
    for algo in (whole, resumed):
        algo.train()
    assert_same_everywhere(whole, resumed)
    whole.stop()
    resumed.stop()


def test_an_adapter_of_a_lower_rank_fits(running: Any, tmp_path: Path) -> None:
    """`adapter_config.json` says its rank; here it is that of one direction of agent_1's adapter."""
    from rllib_haml.modules.adapter_files import export_adapter
    from rllib_haml.modules.lora_config import LoRAConfig

    narrow = refactored(running.get_module("agent_1"), LoRAConfig(r=1))
    export_adapter(narrow, tmp_path)
    running.load_adapter("agent_2", tmp_path)
    found = running.get_module("agent_2").weights()
    for name, weight in narrow.weights().items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_is_refused(running: Any, tmp_path: Path) -> None:
    from rllib_haml.modules.adapter_files import export_adapter
    from rllib_haml.modules.lora_config import LoRAConfig

    before = weights(running)
    with pytest.raises(ValueError, match=r"no adapter 'agent_9': expected one of agent_0, agent_1, agent_2"):
        running.save_adapter("agent_9", tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        running.load_adapter("agent_0", tmp_path)
    wide = refactored(running.get_module("agent_1"), LoRAConfig(r=4))
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    export_adapter(wide, tmp_path / "wide")
    with pytest.raises(ValueError, match=r"needs rank 4 and has 2 \(r, or rank_pattern"):
        running.load_adapter("agent_0", tmp_path / "wide")
    assert moved(before, weights(running)) == set()


def test_another_backbones_adapter_and_a_team_that_still_shares(running: Any, tmp_path: Path) -> None:
    running.save_adapter("agent_0", tmp_path)
    young = config(10 * STEPS).build_algo()
    with pytest.raises(ValueError, match="the team still trains the shared network"):
        young.load_adapter("agent_0", tmp_path)
    young.stop()
    stranger = config(0).debugging(seed=8).build_algo()
    stranger.train()
    with pytest.raises(ValueError, match="exported over the backbone"):
        stranger.load_adapter("agent_0", tmp_path)
    stranger.stop()


def test_every_learner_gets_it(ray_cluster: None, tmp_path: Path) -> None:
    algo = config(0, lr=1e-2).learners(num_learners=2).build_algo()
    algo.train()
    algo.save_adapter("agent_1", tmp_path)
    algo.load_adapter("agent_0", tmp_path)

    def own(learner: Any) -> tuple[dict[str, np.ndarray], int]:
        state = learner.module["agent_0"].state_dict()
        return {k: v.numpy() for k, v in state.items()}, len(learner.get_optimizer("agent_0").state)

    found = [answer.get() for answer in algo.learner_group.foreach_learner(own)]
    assert len(found) == 2
    expected = algo.get_module("agent_1").state_dict()
    for state, moments in found:
        assert moments == 0
        assert all(np.array_equal(value, expected[key].numpy()) for key, value in state.items())
    algo.stop()


def test_a_team_that_never_shares_can_be_given_adapters_at_once(running: Any, tmp_path: Path) -> None:
    path = running.save_to_path(str(tmp_path / "checkpoint"))
    running.save_adapter("agent_1", tmp_path / "second")
    young = config(0, backbone_checkpoint=path).build_algo()
    young.load_adapter("agent_2", tmp_path / "second")
    given, expected = weights(young)["agent_2"], weights(running)["agent_1"]
    assert all(np.array_equal(value, expected[key]) for key, value in given.items())
    assert young.train()["learners"]["agent_2"]["behaviour_gap"] < 1e-4
    young.stop()


def test_remote_env_runners_get_it(ray_cluster: None, tmp_path: Path) -> None:
    """Else the learner would evaluate other policies than those that acted."""
    algo = config(0, lr=1e-2).env_runners(num_env_runners=1).build_algo()
    algo.train()
    algo.save_adapter("agent_1", tmp_path)
    algo.load_adapter("agent_0", tmp_path)
    learners = algo.train()["learners"]
    assert all(learners[agent]["behaviour_gap"] < 1e-4 for agent in ("agent_0", "agent_1", "agent_2"))
    algo.stop()
