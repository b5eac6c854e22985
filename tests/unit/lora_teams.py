"""Small backbones of every kind, and adapters over them that have learnt something."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from ray.rllib.core.columns import Columns

from rllib_haml.modules.actor import ACTION_MASK, Actor
from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.lora_config import LoRAConfig

OBS = spaces.Box(-1, 1, (5,), np.float32)
HEADS: dict[str, spaces.Space] = {
    "box": spaces.Box(-1, 1, (3,), np.float32),
    "discrete": spaces.Discrete(4),
    "multi discrete": spaces.MultiDiscrete([2, 3]),
    "multi binary": spaces.MultiBinary(3),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (2,), np.float32)]),
    "dict": spaces.Dict({"go": spaces.Box(-1, 1, (2,), np.float32), "say": spaces.Discrete(3)}),
}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "squashed": {"squash_actions": True},
    "bare": {"feature_layer_norm": False, "hidden_layer_norm": False},
    "gru": {"use_gru": True, "lstm_cell_size": 7},
    "lstm": {"use_lstm": True, "lstm_cell_size": 7},
}


def make_actor(head: str = "box", network: str = "mlp", seed: int = 0, **changes: Any) -> Actor:
    torch.manual_seed(seed)
    config = {"fcnet_hiddens": [10, 9], "head_gain": 1.0} | NETWORKS[network] | changes
    return Actor(observation_space=OBS, action_space=HEADS[head], model_config=config)


def make_adapter(backbone: Actor, seed: int = 1, *, train_backbone: bool = False, **lora: Any) -> Adapter:
    torch.manual_seed(seed)
    config = LoRAConfig(**{"r": 2, "lora_alpha": 3} | lora)
    return Adapter.over(backbone, config, train_backbone=train_backbone)


def learnt(backbone: Actor, seed: int = 1, **lora: Any) -> Adapter:
    """An adapter whose every parameter has moved."""
    adapter = make_adapter(backbone, seed, **lora)
    perturb(adapter, seed)
    return adapter


@torch.no_grad()
def perturb(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def make_batch(actor: Any, rows: int = 6, seed: int = 2) -> dict[str, Any]:
    """What the forwards take: rows, or sequences of 4 steps from a state for a recurrent module."""
    generator = torch.Generator().manual_seed(seed)
    state = actor.get_initial_state()
    lead = (rows, 4) if state else (rows,)
    batch: dict[str, Any] = {Columns.OBS: torch.rand(*lead, 5, generator=generator) * 2 - 1}
    if state:
        batch[Columns.STATE_IN] = {
            part: torch.randn(rows, *zeros.shape, generator=generator) for part, zeros in state.items()
        }
    if isinstance(actor.action_space, spaces.Discrete):
        batch[ACTION_MASK] = torch.rand(*lead, int(actor.action_space.n), generator=generator) > 0.3
    return batch


def outputs(module: Actor | Adapter, batch: dict[str, Any]) -> torch.Tensor:
    """The parameters of the action distributions."""
    return module.forward_train(copy.copy(batch))[Columns.ACTION_DIST_INPUTS]


def refactored(adapter: Adapter, config: LoRAConfig) -> Adapter:
    """Its policy in factors of other ranks, as near as these allow."""
    made = Adapter.over(
        adapter.backbone,
        config,
        observation_space=adapter.observation_space,
        action_space=adapter.action_space,
        train_backbone=adapter.train_backbone,
    )
    made.lora.assign(adapter.lora.deltas())
    return made
