"""From observations of any space to one vector per row, and the MLP that reads it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import gymnasium as gym
import torch
from gymnasium import spaces
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "gelu": nn.GELU,
}


def flat_size(space: gym.Space) -> int:
    """Width of `flatten_rows`' output for `space`.

    Raises:
        ValueError: If rows of this space cannot be flattened.
    """
    return spaces.flatdim(_supported(space))


def flatten_rows(space: gym.Space, rows: Any) -> Tensor:
    """Rows of `space` as vectors: boxes flattened, discrete values one-hot, Dict and Tuple concatenated.

    Args:
        rows: A tree of tensors (R, ...) as `space` has it.

    Returns:
        (R, flat_size(space)), floating point.
    """
    if isinstance(space, spaces.Dict):
        return torch.cat([flatten_rows(s, rows[key]) for key, s in space.items()], dim=-1)
    if isinstance(space, spaces.Tuple):
        return torch.cat([flatten_rows(s, r) for s, r in zip(space, rows, strict=True)], dim=-1)
    if isinstance(space, spaces.Discrete):
        # The zeros that stand for an absent agent may lie below the first value.
        index = (rows.long() - int(space.start)).clamp(min=0)
        return nn.functional.one_hot(index, int(space.n)).float()
    if isinstance(space, spaces.MultiDiscrete):
        sizes = [int(n) for n in space.nvec.flatten()]
        start = torch.as_tensor(space.start.flatten(), device=rows.device)
        columns = (rows.flatten(1) - start).long().clamp(min=0)
        return torch.cat([nn.functional.one_hot(columns[:, i], n) for i, n in enumerate(sizes)], -1).float()
    flat = rows.flatten(1) if rows.dim() > 1 else rows[:, None]
    return flat if flat.is_floating_point() else flat.float()


def _supported(space: gym.Space) -> gym.Space:
    parts = list(space.values()) if isinstance(space, spaces.Dict) else []
    parts = list(space) if isinstance(space, spaces.Tuple) else parts
    leaf = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if not isinstance(space, (*leaf, spaces.Dict, spaces.Tuple)):
        raise ValueError(
            f"Observation space {space} is not supported: expected Box, Discrete, MultiDiscrete, "
            f"MultiBinary, or a Dict or Tuple of these. Bring an RLModule of your own with "
            f"`.rl_module(rl_module_spec=...)`, or convert the observation in the environment."
        )
    for part in parts:
        _supported(part)
    return space


def mlp(
    inputs: int,
    hiddens: list[int],
    outputs: int,
    *,
    activation: str,
    feature_layer_norm: bool,
    hidden_layer_norm: bool,
    orthogonal_init: bool,
    head_gain: float,
) -> nn.Sequential:
    """LayerNorm → [Linear → activation → LayerNorm] × len(hiddens) → Linear, each norm optional.

    The reference implementation's network. Orthogonal weights have the gain of relu or tanh
    (`torch.nn.init.calculate_gain`), 1 under other activations, the last layer's `head_gain`; biases
    are then 0.

    Raises:
        ValueError: If `activation` is none of `ACTIVATIONS`.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"fcnet_activation={activation!r} is unknown: use one of {sorted(ACTIVATIONS)}.")
    layers: list[nn.Module] = [nn.LayerNorm(inputs)] if feature_layer_norm else []
    widths = [inputs, *hiddens]
    gain = nn.init.calculate_gain(activation) if activation in ("relu", "tanh") else 1.0
    for fan_in, fan_out in pairwise(widths):
        layers += [linear(fan_in, fan_out, gain if orthogonal_init else None), ACTIVATIONS[activation]()]
        if hidden_layer_norm:
            layers.append(nn.LayerNorm(fan_out))
    layers.append(linear(widths[-1], outputs, head_gain if orthogonal_init else None))
    return nn.Sequential(*layers)


def linear(fan_in: int, fan_out: int, gain: float | None) -> nn.Linear:
    """A linear layer, orthogonal with `gain` and zero bias, or as torch initialises it (None)."""
    layer = nn.Linear(fan_in, fan_out)
    if gain is not None:
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return layer
