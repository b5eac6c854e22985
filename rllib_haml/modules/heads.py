"""From a network's last layer to the parameters of a family of action distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rllib_haml.haml.families import ActionFamily, Bernoulli, Categorical, Gaussian, SquashedGaussian
from rllib_haml.haml.products import MultiCategorical, Product, Shaped
from rllib_haml.modules.model_config import ModelConfig


class Head(nn.Module):
    """What the network's outputs mean.

    Attributes:
        family: The action distributions.
        size: Outputs that the network must have.
    """

    family: ActionFamily
    size: int

    def forward(self, features: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """(..., size) outputs → (..., family.size) parameters, without what the mask forbids."""
        parameters = self.parameters_of(features)
        return parameters if action_mask is None else self.family.masked(parameters, action_mask)

    def parameters_of(self, features: Tensor) -> Tensor:
        """(..., size) outputs → (..., family.size) parameters. Every head defines its own."""
        raise NotImplementedError(f"{type(self).__name__} defines no parameters_of")


class GaussianHead(Head):
    """Diagonal Gaussian with a standard deviation that does not depend on the observation.

    Args:
        space: Box; the policy acts on [-1, 1], RLlib's `normalize_actions` scales to the box.
    """

    def __init__(self, space: spaces.Box, config: ModelConfig):
        super().__init__()
        self.size = int(math.prod(space.shape))
        self.family = _shaped((SquashedGaussian if config.squash_actions else Gaussian)(self.size), space)
        self.bound = config.max_std if config.std_parametrisation == "bounded" else None
        ratio = config.initial_std / (self.bound or 1.0)
        start = math.log(ratio / (1 - ratio)) if self.bound else math.log(ratio)
        self.log_std = nn.Parameter(torch.full((self.size,), start))

    def log_scale(self) -> Tensor:
        """(size,) log of the standard deviation."""
        if self.bound is None:
            return self.log_std
        return nn.functional.logsigmoid(self.log_std) + math.log(self.bound)

    def parameters_of(self, features: Tensor) -> Tensor:
        return torch.cat([features, self.log_scale().expand_as(features)], dim=-1)


class LogitsHead(Head):
    """Discrete choices: the outputs are the logits themselves."""

    def __init__(self, family: ActionFamily):
        super().__init__()
        self.family, self.size = family, family.size

    def parameters_of(self, features: Tensor) -> Tensor:
        return features


class ProductHead(Head):
    """The parts of a Tuple or Dict of actions, each with a head of its own.

    Args:
        keys: Of a Dict, in its order; None for a Tuple.
    """

    def __init__(self, keys: Sequence[str] | None, parts: Sequence[Head]):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        families = [part.family for part in parts]
        self.family = Product(families if keys is None else dict(zip(keys, families, strict=True)))
        self._sizes = [part.size for part in parts]
        self.size = sum(self._sizes)

    def parameters_of(self, features: Tensor) -> Tensor:
        pieces = features.split(self._sizes, dim=-1)
        return torch.cat([part(piece) for part, piece in zip(self.parts, pieces, strict=True)], dim=-1)


def make_head(space: gym.Space, config: ModelConfig) -> Head:
    """The head for an action space.

    Raises:
        ValueError: If no head supports it.
    """
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return GaussianHead(space, config)
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return LogitsHead(Categorical(int(space.n)))
    if isinstance(space, spaces.MultiDiscrete) and not space.start.any():
        return LogitsHead(_shaped(MultiCategorical(space.nvec.flatten().tolist()), space))
    if isinstance(space, spaces.MultiBinary):
        return LogitsHead(_shaped(Bernoulli(int(math.prod(space.shape))), space))
    if isinstance(space, spaces.Tuple):
        return ProductHead(None, [make_head(part, config) for part in space])
    if isinstance(space, spaces.Dict):
        return ProductHead(list(space), [make_head(part, config) for part in space.values()])
    raise ValueError(
        f"Action space {space} has no head: expected a Box of floats, a Discrete or MultiDiscrete from 0, a "
        f"MultiBinary, or a Tuple or Dict of these. Convert it in the environment, or bring an RLModule of "
        f"your own with `.rl_module(rl_module_spec=...)`."
    )


def _shaped(vectors: ActionFamily, space: gym.Space) -> ActionFamily:
    """`vectors` with actions of the space's shape."""
    shape = space.shape or ()
    return vectors if len(shape) == 1 else Shaped(vectors, shape)
