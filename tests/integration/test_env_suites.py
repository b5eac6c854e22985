"""HAPPO on each suite that comes with the package, through both samplers."""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
from fake_starcraft import StarCraft2Env
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner

from rllib_haml import HAPPOConfig

SUITES: dict[str, dict[str, Any]] = {
    "smax": {"scenario": "3m"},
    "smac": {"deaths": {1: 2}, "won": 5},
    "rware": {"task": "tiny-2ag", "max_steps": 20},
    "lbf": {"task": "8x8-2p-2f-coop", "max_episode_steps": 20},
    "job_shop": {"plant": "workshop"},
}
PACKAGES = {"smax": "jaxmarl", "rware": "rware", "lbf": "lbforaging"}


@pytest.mark.parametrize("sampler", ["fast", "stock"])
@pytest.mark.parametrize("name", SUITES)
def test_happo_trains(name: str, sampler: str, ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in PACKAGES and find_spec(PACKAGES[name]) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    game: Any = ModuleType("smac.env")
    game.StarCraft2Env = StarCraft2Env
    monkeypatch.setitem(sys.modules, "smac", ModuleType("smac"))
    monkeypatch.setitem(sys.modules, "smac.env", game)
    config: Any = (
        HAPPOConfig()
        .environment(name, env_config=SUITES[name])
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=80, num_epochs=1, critic_num_epochs=1)
        .rl_module(model_config={"fcnet_hiddens": [8]})
    )
    if sampler == "stock":
        # It loses what an agent did last that is not observed when a fragment is cut, and checks
        # environments with actions that their masks forbid.
        config.env_runners(env_runner_cls=MultiAgentEnvRunner, batch_mode="complete_episodes")
        config.environment(disable_env_checking=True)
    algo = config.build_algo()
    try:
        result = algo.train()
    finally:
        algo.stop()
    assert math.isfinite(result["env_runners"]["team_return_mean"])
    for agent in algo.config.team.agents:
        assert float(result["learners"][agent]["behaviour_gap"]) < 1e-4
