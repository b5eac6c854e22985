"""A team goes on as a larger one: nobody changes by it, and newcomers begin where they are told to."""

from __future__ import annotations

import copy
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from ray.rllib.core.columns import Columns
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.tune.registry import register_env
from test_lorasa import weights

from rllib_haml import LoRASA, LoRASAConfig
from rllib_haml.checkpoints.read import CheckpointError

OBS = {Columns.OBS: torch.rand(9, 4, generator=torch.Generator().manual_seed(0))}


class Crowd(MultiAgentEnv):
    """Each agent is to repeat the largest entry of what it sees, however many they are."""

    observation_spaces: Any
    seen: Any

    def __init__(self, agents: list[str], width: int = 4, narrow: str = ""):
        super().__init__()
        self.possible_agents = self.agents = list(agents)
        widths = {a: width - (a == narrow) for a in agents}
        self.observation_spaces = {a: spaces.Box(0, 1, (n,), np.float32) for a, n in widths.items()}
        self.action_spaces = {a: spaces.Discrete(n) for a, n in widths.items()}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.rng, self.time = np.random.default_rng(seed), 0
        return self._look(), {}

    def step(self, action_dict: Any) -> Any:
        reward = float(sum(self.seen[a].argmax() == action for a, action in action_dict.items()))
        self.time += 1
        ends = {"__all__": self.time == 10}
        return self._look(), dict.fromkeys(self.agents, reward), {"__all__": False}, ends, {}

    def _look(self) -> dict[str, np.ndarray]:
        self.seen = {a: space.sample() for a, space in self.observation_spaces.items()}
        return dict(self.seen)


def config(
    agents: list[str], model: dict[str, Any] | None = None, width: int = 4, narrow: str = "", **training: Any
) -> Any:
    register_env("crowd", lambda given: Crowd(**given))
    settings = {"train_batch_size_per_learner": 80, "num_epochs": 2, "lora": {"r": 2}, "lr": 1e-2}
    return (
        LoRASAConfig()
        .environment("crowd", env_config={"agents": agents, "width": width, "narrow": narrow})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(**settings | training)
        .rl_module(model_config={"fcnet_hiddens": [8]} | (model or {}))
        .debugging(seed=4)
    )


@pytest.fixture(scope="module")
def former(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The checkpoint of ann and bob, and what they were."""
    algo = config(["ann", "bob"], adapters_from=0).build_algo()
    for _ in range(3):
        algo.train()
    path = algo.save_to_path(str(tmp_path_factory.mktemp("former") / "checkpoint"))
    modules = {name: algo.get_module(name) for name in ("ann", "bob", "backbone")}
    critic = weights(algo)["critic"]
    algo.stop()
    return str(path), modules, critic


def joined(former: Any, agents: tuple[str, ...] = ("ann", "bob", "cid"), **settings: Any) -> Any:
    return config(list(agents), adapters_checkpoint=former[0], **settings).build_algo()


def outputs(module: Any) -> np.ndarray:
    with torch.no_grad():
        return module.forward_exploration(dict(OBS))[Columns.ACTION_DIST_INPUTS].numpy()


def deltas(module: Any) -> dict[str, np.ndarray]:
    return {name: x.detach().double().numpy() for name, x in module.lora.deltas().items()}


@pytest.mark.parametrize("new, like", [("zero", "backbone"), ("bob", "bob")])
def test_nobody_changes_and_newcomers_begin_as_told(former: Any, new: str, like: str) -> None:
    """To the last bit, on the sampler and on the learner; then only adapters move."""
    algo, (_, before, _) = joined(former, new_adapters=new), former
    for name, expected in (("ann", "ann"), ("bob", "bob"), ("cid", like), ("backbone", "backbone")):
        for module in (algo.get_module(name), algo.learner_group._learner.module[name].unwrapped()):
            np.testing.assert_array_equal(outputs(module), outputs(before[expected]))
    assert np.abs(outputs(before["ann"]) - outputs(before["bob"])).max() > 1e-3, "control: agents differ"
    assert np.abs(outputs(before["bob"]) - outputs(before["backbone"])).max() > 1e-3
    start = weights(algo)
    result = algo.train()
    assert result["adapters_train"] == 1.0
    assert all(result["learners"][name]["behaviour_gap"] < 1e-4 for name in ("ann", "bob", "cid"))
    after = weights(algo)
    assert all(np.array_equal(value, after["backbone"][key]) for key, value in start["backbone"].items())
    for name in ("ann", "bob", "cid"):
        assert any(not np.array_equal(value, after[name][key]) for key, value in start[name].items())
    algo.stop()


def test_the_mean_of_the_others(former: Any) -> None:
    """In numpy; of rank 2, the nearest to a mean of rank 4."""
    algo, (_, before, _) = joined(former, new_adapters="mean"), former
    ann, bob, cid = (deltas(module) for module in (before["ann"], before["bob"], algo.get_module("cid")))
    for name, delta in cid.items():
        left, sizes, right = np.linalg.svd((ann[name] + bob[name]) / 2, full_matrices=False)
        rank = 2 if len(sizes) > 2 else len(sizes)
        np.testing.assert_allclose(delta, left[:, :rank] * sizes[:rank] @ right[:rank], atol=1e-6)
        assert np.abs(delta).max() > 1e-4
    algo.stop()


def test_adapters_of_a_higher_rank_take_them_over(former: Any) -> None:
    algo, (_, before, _) = joined(former, lora={"r": 3}), former
    for name in ("ann", "bob"):
        np.testing.assert_allclose(outputs(algo.get_module(name)), outputs(before[name]), atol=1e-5)
    algo.stop()


def test_the_critic_goes_on_if_it_sees_as_much(former: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rllib_haml")
    algo = joined(former, ("bob", "dan"))
    assert all(np.array_equal(value, former[2][key]) for key, value in weights(algo)["critic"].items())
    assert not algo.learner_group._learner.get_optimizer("critic").state
    assert "critic begins anew" not in caplog.text
    algo.stop()
    larger = joined(former)
    assert "The critic begins anew" in caplog.text
    larger.stop()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"agents": ("eva", "fay")}, r"has the adapters ann, bob, none of which is a policy of.* eva, fay"),
        ({"new_adapters": "dan"}, r"new_adapters='dan': expected zero, mean, or the name.*: ann, bob"),
        ({"width": 5}, r"the observation_space of 'backbone' was .*\(4,\).* and is .*\(5,\).* here"),
        ({"model": {"fcnet_hiddens": [9]}}, r"was `model_config` changed"),
        ({"lora": {"r": 1}}, r"needs rank 2 and has 1 \(r, or rank_pattern"),
    ],
)
def test_what_cannot_go_on(former: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        joined(former, **copy.deepcopy(settings))


@pytest.mark.parametrize("key", ["adapters_checkpoint", "backbone_checkpoint"])
def test_a_runs_own_checkpoint_stands_alone(former: Any, tmp_path: Path, key: str) -> None:
    """The one that it began with may be gone by then."""
    shutil.copytree(former[0], tmp_path / "first")
    start: dict[str, Any] = {key: str(tmp_path / "first")}
    start |= {"adapters_from": 0} if key == "backbone_checkpoint" else {}
    algo = config(["ann", "bob", "cid"], **start).build_algo()
    algo.train()
    path, expected = algo.save_to_path(str(tmp_path / "second")), weights(algo)
    algo.stop()
    shutil.rmtree(tmp_path / "first")
    restored: Any = LoRASA.from_checkpoint(path)
    for name, tensors in weights(restored).items():
        assert all(np.array_equal(value, expected[name][tensor]) for tensor, value in tensors.items())
    assert restored.train()["adapters_train"] == 1.0
    restored.stop()


@pytest.mark.parametrize("key", ["adapters_checkpoint", "backbone_checkpoint"])
def test_a_trial_that_is_started_again_needs_its_own_checkpoint_only(
    former: Any, tmp_path: Path, key: str
) -> None:
    """As Tune does it: the algorithm is built anew from the same config, then restored."""
    shutil.copytree(former[0], tmp_path / "first")
    start: dict[str, Any] = {key: str(tmp_path / "first")}
    start |= {"adapters_from": 0} if key == "backbone_checkpoint" else {}
    settings = config(["ann", "bob", "cid"], **start)
    algo = settings.copy(copy_frozen=False).build_algo()
    algo.train()
    path, expected = algo.save_to_path(str(tmp_path / "second")), weights(algo)
    algo.stop()
    shutil.rmtree(tmp_path / "first")
    again = settings.copy(copy_frozen=False).build_algo()
    for call in (again.train, again.evaluate):
        with pytest.raises(
            FileNotFoundError, match=rf"{key}='.*first' does not exist: expected the directory"
        ):
            call()
    again.restore(path)
    found = weights(again)
    for name, tensors in expected.items():
        assert all(np.array_equal(value, found[name][tensor]) for tensor, value in tensors.items())
    assert again.train()["adapters_train"] == 1.0
    again.stop()


def test_checkpoints_are_found_from_where_the_config_is_written(tmp_path: Any, monkeypatch: Any) -> None:
    """Trials run in directories of their own."""
    monkeypatch.chdir(tmp_path)
    made = config(["ann"], adapters_checkpoint="runs/first")
    assert made.adapters_checkpoint == str(tmp_path / "runs" / "first")
    assert config(["ann"], backbone_checkpoint="~/x").backbone_checkpoint == str(Path.home() / "x")
    assert made.training(adapters_checkpoint=None).adapters_checkpoint is None


def test_a_newcomer_with_narrower_spaces(former: Any) -> None:
    """It begins as the leading part of the backbone: as that is where nobody sees or does the last."""
    algo, (_, before, _) = joined(former, narrow="cid"), former
    np.testing.assert_array_equal(outputs(algo.get_module("ann")), outputs(before["ann"]))
    cid = algo.get_module("cid").weights()
    for name, weight in before["backbone"].named_parameters():
        np.testing.assert_array_equal(cid[name].detach(), weight.detach()[tuple(map(slice, cid[name].shape))])
    assert cid["network.1.weight"].shape[1] == 3
    algo.stop()
    with pytest.raises(ValueError, match="'mean': none of the adapters ann, bob has the spaces of 'cid'"):
        joined(former, narrow="cid", new_adapters="mean")
    with pytest.raises(ValueError, match=r"the observation_space of 'cid' was .*\(4,\).* and is .*\(3,\)"):
        joined(former, narrow="cid", new_adapters="bob")


def test_what_is_no_checkpoint_is_refused_by_its_key(ray_cluster: None, tmp_path: Any) -> None:
    for key in ("adapters_checkpoint", "backbone_checkpoint"):
        with pytest.raises(CheckpointError, match=f"{key}=.* is no checkpoint of an algorithm"):
            config(["ann"], **{key: str(tmp_path)}).build_algo()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"new_adapters": "mean"}, "new_adapters='mean' says how agents join"),
        ({"adapters_checkpoint": "x", "backbone_checkpoint": "y"}, "both bring a backbone"),
        ({"adapters_checkpoint": "x", "adapters_from": 500}, "adapters_from=500: adapters that"),
    ],
)
def test_keys_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(["ann"], **settings).validate()
