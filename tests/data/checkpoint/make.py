"""Makes the checkpoint that later releases must be able to load: `python tests/data/checkpoint/make.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.rllib.core.columns import Columns

from rllib_haml import HAPPOConfig

HERE = Path(__file__).parent


def logits(module: Any) -> np.ndarray:
    """Of the policy in the game's one state."""
    with torch.no_grad():
        out = module.forward_inference({Columns.OBS: torch.ones(1, 1)})
    return out[Columns.ACTION_DIST_INPUTS].numpy()


def make() -> None:
    config = (
        HAPPOConfig()
        .environment("matrix_game", env_config={"game": "climbing"})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=32)
        .rl_module(model_config={"fcnet_hiddens": [4]})
        .debugging(seed=1)
    )
    ray.init("local", num_cpus=1, include_dashboard=False)
    algo = config.build_algo()
    for _ in range(2):
        algo.train()
    algo.save_to_path(HERE / "happo_climbing")
    played: dict[str, Any] = {agent: logits(algo.get_module(agent)) for agent in ("agent_0", "agent_1")}
    np.savez(HERE / "happo_climbing.npz", **played)
    algo.stop()


if __name__ == "__main__":
    make()
