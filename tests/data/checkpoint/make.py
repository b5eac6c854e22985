"""Makes the checkpoints that later releases must load: `python tests/data/checkpoint/make.py NAME...`.

Beside the directory NAME lies NAME.npz: what the algorithm answered as it was saved (`answers`), and after
one further update. Those of LoRASA have their adapters beside them too, as `save_adapter` writes them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
import tree
from ray.rllib.core.columns import Columns

from rllib_haml import HAPPOConfig, HATRPOConfig, LoRASAConfig

HERE = Path(__file__).parent
ROWS = 3
JOBS = [[["saw", 3], ["mill", 2]], [["mill", 2], ["saw", 1]], [["saw", 1], ["mill", 4]]]


def config(of: type, env: str, env_config: dict[str, Any], **model: Any) -> Any:
    return (
        of()
        .environment(env, env_config=env_config)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=32)
        .rl_module(model_config={"fcnet_hiddens": [4]} | model)
        .debugging(seed=1)
    )


def configs() -> dict[str, Any]:
    shop: Any = ("job_shop", {"plant": JOBS, "breakdown": 0.3})
    memory = {"use_gru": True, "lstm_cell_size": 4, "max_seq_len": 5}
    return {
        "happo_climbing": config(HAPPOConfig, "matrix_game", {"game": "climbing"}),
        "happo_gru": config(HAPPOConfig, *shop, **memory),
        "hatrpo_product": config(HATRPOConfig, "differential_game", {"game": "gaussian_product"}),
        "lorasa_adapting": config(LoRASAConfig, *shop).training(
            lora={"r": 1}, critic_lora={"r": 1}, adapters_from=32, lr=1e-2
        ),
    }


def seen(space: gym.Space) -> Any:
    """ROWS observations; in an `action_mask` the first entry of all is illegal."""
    if isinstance(space, gym.spaces.Dict):
        return {key: seen(sub) for key, sub in space.items()}
    shape = (ROWS, *(space.shape or ()))
    return torch.arange(float(np.prod(shape))).sin().abs().view(shape)


def answer(module: Any) -> np.ndarray:
    """What a policy or critic says of `seen`; a recurrent one, of these as one sequence."""
    batch: dict[str, Any] = {Columns.OBS: seen(module.observation_space)}
    if state := module.get_initial_state():
        # As RLlib hands them on: (B, T, ...) and (B, H).
        batch = tree.map_structure(lambda x: x.unsqueeze(0), batch | {Columns.STATE_IN: state})
    with torch.no_grad():
        out = module.forward_inference(batch)
    return out[Columns.VF_PREDS if Columns.VF_PREDS in out else Columns.ACTION_DIST_INPUTS].numpy()


def answers(algo: Any) -> dict[str, np.ndarray]:
    """Of every policy and critic by name."""
    modules = algo.learner_group._learner.module
    return {name: answer(module.unwrapped()) for name, module in modules.items()}


def weights(algo: Any) -> dict[str, np.ndarray]:
    """All of a module's in one vector, by its name."""
    modules = algo.learner_group._learner.module
    return {
        f"{name}/weights": np.concatenate([np.ravel(value) for value in module.get_state().values()])
        for name, module in modules.items()
    }


def make(name: str) -> None:
    algo = configs()[name].build_algo()
    for _ in range(2):
        algo.train()
    algo.save_to_path(HERE / name)
    told: dict[str, Any] = answers(algo)
    if name.startswith("lorasa"):
        for agent in algo.config.team.agents:
            algo.save_adapter(agent, HERE / f"{name}_adapters" / agent)
    algo.train()
    told |= weights(algo)
    np.savez(HERE / f"{name}.npz", **told)
    algo.stop()


if __name__ == "__main__":
    ray.init("local", num_cpus=1, include_dashboard=False)
    for chosen in sys.argv[1:]:
        make(chosen)
