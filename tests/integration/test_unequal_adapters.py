"""LoRASA with agents of unequal spaces: both phases train, act and are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gymnasium import spaces
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from running_state import assert_same_everywhere
from test_lorasa import moved, weights

from rllib_haml import LoRASA, LoRASAConfig
from rllib_haml.cli.app import rllib
from rllib_haml.modules.actor import Actor

AGENTS = ("small", "middle", "large")
WIDTHS, SIZES = {"small": 2, "middle": 3, "large": 5}, {"small": 2, "middle": 4, "large": 3}


class Unequal(MultiAgentEnv):
    """Each agent sees a random vector of its own width; the team is paid for actions that follow its first
    two entries: the larger one's index, or the entry itself."""

    LENGTH = 10

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self._continuous = (config or {}).get("continuous", False)
        self.possible_agents = self.agents = list(AGENTS)
        super().__init__()
        self.observation_spaces = {a: spaces.Box(-1, 1, (WIDTHS[a],), np.float32) for a in AGENTS}
        self.action_spaces = {a: self._actions(SIZES[a]) for a in AGENTS}
        self._rng = np.random.default_rng(0)

    def _actions(self, size: int) -> gym.Space:
        return spaces.Box(-1, 1, (size,), np.float32) if self._continuous else spaces.Discrete(size)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._time = 0
        return self._look(), {}

    def _look(self) -> dict[str, np.ndarray]:
        self._seen = {a: self._rng.uniform(-1, 1, WIDTHS[a]).astype(np.float32) for a in AGENTS}
        return self._seen

    def step(self, action_dict: dict[str, Any]) -> Any:
        paid = np.mean([self._pay(action_dict[a], self._seen[a]) for a in AGENTS])
        self._time += 1
        over = {"__all__": self._time == self.LENGTH}
        return self._look(), dict.fromkeys(AGENTS, float(paid)), {"__all__": False}, over, {}

    def _pay(self, action: Any, seen: np.ndarray) -> float:
        return -abs(float(action[0] - seen[0])) if self._continuous else float(action == seen[:2].argmax())

    def get_state(self) -> dict[str, Any]:
        return {"time": self._time, "seen": dict(self._seen), "rng": self._rng.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        self._time, self._seen = state["time"], dict(state["seen"])
        self._rng.bit_generator.state = state["rng"]


class Mixed(Unequal):
    """One chooses, the others move."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__(config)
        self.action_spaces["middle"] = spaces.MultiDiscrete([2, 3])


def config(continuous: bool = False, steps: int = 100, **training: Any) -> LoRASAConfig:
    settings = {"adapters_from": 2 * steps, "num_epochs": 3, "critic_num_epochs": 2, "lora": {"r": 2}}
    return (
        LoRASAConfig()
        .environment(Unequal, env_config={"continuous": continuous})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=steps, **(settings | training))
        .rl_module(model_config={"fcnet_hiddens": [16]})
        .debugging(seed=3)
    )


def with_model(made: LoRASAConfig, **model: Any) -> LoRASAConfig:
    return made.rl_module(model_config={"fcnet_hiddens": [16], **model})


@pytest.mark.parametrize("model", [{}, {"use_gru": True, "lstm_cell_size": 8}], ids=["mlp", "gru"])
@pytest.mark.parametrize("continuous", [False, True], ids=["discrete", "box"])
@pytest.mark.parametrize("scheme", ["sequential", "simultaneous"])
def test_first_the_backbone_moves_and_then_the_adapters(
    ray_cluster: None, continuous: bool, model: dict[str, Any], scheme: str
) -> None:
    """To the last bit; the sampler acts as the learner trains in both phases."""
    algo = with_model(config(continuous, update_scheme=scheme), **model).build_algo()
    start = weights(algo)
    results = [algo.train() for _ in range(2)]
    shared = weights(algo)
    assert moved(start, shared) == {"backbone", "critic"}
    results += [algo.train() for _ in range(2)]
    assert moved(shared, weights(algo)) == {*AGENTS, "critic"}
    assert [result["adapters_train"] for result in results] == [0.0, 0.0, 1.0, 1.0]
    for result, movers in zip(results, [{"backbone"}] * 2 + [set(AGENTS)] * 2, strict=True):
        found = {name: f for name, f in result["learners"].items() if np.isfinite(f.get("mean_kl", np.nan))}
        assert set(found) == movers
        assert all(figures["behaviour_gap"] < 1e-4 for figures in found.values())
    widest_of_both = algo.get_module("backbone")
    assert (widest_of_both.observation_space.shape, widest_of_both.head.size) == ((5,), 4)
    algo.stop()


@pytest.mark.parametrize(
    "mode, third, fourth",
    [
        ("joint", {*AGENTS, "backbone"}, {*AGENTS, "backbone"}),
        ("alternating", set(AGENTS), {"backbone"}),
        ("continue_shared", {"backbone"}, {"backbone"}),
        ("dense_delta", set(AGENTS), set(AGENTS)),
        ("separate", set(AGENTS), set(AGENTS)),
    ],
)
def test_the_other_modes(ray_cluster: None, mode: str, third: set[str], fourth: set[str]) -> None:
    algo = config(adapter_mode=mode).build_algo()
    for _ in range(2):
        algo.train()
    for movers in (third, fourth):
        before = weights(algo)
        learners = algo.train()["learners"]
        assert moved(before, weights(algo)) == {*movers, "critic"}
        gaps = [figures.get("behaviour_gap", 0.0) for figures in learners.values()]
        assert np.nanmax(gaps) < 1e-4
    algo.stop()


def test_it_learns_in_both_phases(ray_cluster: None) -> None:
    """By chance a team earns (1/2 + 1/4 + 1/3) / 3 of 10."""
    algo = config(steps=400, adapters_from=8 * 400, num_epochs=5, lr=5e-3).build_algo()
    returns = [algo.train()["env_runners"]["team_return_mean"] for _ in range(24)]
    assert returns[0] == pytest.approx(3.6, abs=0.5)
    assert returns[7] > 5.5, "while it shares"
    assert returns[-1] > returns[7] + 0.7, "by its adapters"
    algo.stop()


def test_what_one_network_cannot_read_or_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"LoRASA shares one network.*MultiDiscrete.*or use HAPPO"):
        config().environment(Mixed).validate()
    speaker = LoRASAConfig().environment("mpe", env_config={"scenario": "simple_speaker_listener_v4"})
    speaker.validate()


@pytest.mark.parametrize("stop_after", [1, 3], ids=["sharing", "adapting"])
def test_resuming_is_exact(ray_cluster: None, tmp_path: Path, stop_after: int) -> None:
    whole = config().build_algo()
    for _ in range(stop_after):
        whole.train()
    checkpoint = whole.save_to_path(str(tmp_path / "checkpoint"))
    whole.train()
    resumed = LoRASA.from_checkpoint(checkpoint)
    resumed.train()
    assert_same_everywhere(whole, resumed)
    whole.stop()
    resumed.stop()


def test_the_adapters_command(ray_cluster: None, tmp_path: Path) -> None:
    algo = config(adapters_from=0, lr=1e-2).build_algo()
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    rows = {a: {Columns.OBS: torch.rand(5, WIDTHS[a])} for a in AGENTS}
    decided = {a: algo.get_module(a).forward_inference(rows[a])[Columns.ACTION_DIST_INPUTS] for a in AGENTS}
    algo.stop()

    def command(*arguments: Any) -> str:
        done = CliRunner().invoke(rllib, ["adapters", *map(str, arguments)])
        assert done.exit_code == 0, done.output
        return done.output

    assert all(agent in command("list", path) for agent in AGENTS)
    assert all(agent in command("audit", path) for agent in AGENTS)
    command("merge", path, tmp_path / "merged")
    command("export", path, tmp_path / "files")
    for agent, expected in decided.items():
        merged = RLModule.from_checkpoint(str(tmp_path / "merged" / agent))
        assert type(merged) is Actor
        np.testing.assert_allclose(
            merged.forward_inference(rows[agent])[Columns.ACTION_DIST_INPUTS].detach(),
            expected.detach(),
            atol=1e-6,
        )
    command("import", path, tmp_path / "files" / "middle", tmp_path / "same", "--agent", "middle")
    wrong = ["import", path, str(tmp_path / "files" / "middle"), str(tmp_path / "other"), "--agent", "small"]
    done = CliRunner().invoke(rllib, ["adapters", *wrong])
    assert done.exit_code == 2
    assert "does not hold what" in done.output
