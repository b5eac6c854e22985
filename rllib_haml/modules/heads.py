"""From a network's last layer to the inputs of an action distribution."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDiagGaussian,
    TorchDistribution,
)
from torch import Tensor, nn

from rllib_haml.modules.model_config import ModelConfig

MASKED_LOGIT = -1e10


class GaussianHead(nn.Module):
    """Diagonal Gaussian, unsquashed, with a standard deviation that does not depend on the observation.

    Args:
        space: Box; the policy acts on [-1, 1], RLlib's `normalize_actions` scales to the box.
    """

    distribution: type[TorchDistribution] = TorchDiagGaussian

    def __init__(self, space: spaces.Box, config: ModelConfig):
        super().__init__()
        self.size = int(math.prod(space.shape))
        self.bound = config.max_std if config.std_parametrisation == "bounded" else None
        ratio = config.initial_std / (self.bound or 1.0)
        start = math.log(ratio / (1 - ratio)) if self.bound else math.log(ratio)
        self.log_std = nn.Parameter(torch.full((self.size,), start))

    def log_scale(self) -> Tensor:
        """(size,) log of the standard deviation."""
        if self.bound is None:
            return self.log_std
        return nn.functional.logsigmoid(self.log_std) + math.log(self.bound)

    def forward(self, features: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """(R, size) means → (R, 2 · size) distribution inputs."""
        return torch.cat([features, self.log_scale().expand_as(features)], dim=-1)


class CategoricalHead(nn.Module):
    """One discrete choice; masked choices have probability 0.

    Args:
        space: Discrete, starting at 0.
    """

    distribution: type[TorchDistribution] = TorchCategorical

    def __init__(self, space: spaces.Discrete, config: ModelConfig):
        super().__init__()
        self.size = int(space.n)

    def forward(self, features: Tensor, action_mask: Tensor | None = None) -> Tensor:
        """(R, n) logits → (R, n), those masked out at `MASKED_LOGIT`."""
        return features if action_mask is None else features.masked_fill(~action_mask.bool(), MASKED_LOGIT)


def make_head(space: gym.Space, config: ModelConfig) -> GaussianHead | CategoricalHead:
    """The head for an action space.

    Raises:
        ValueError: If no head supports it.
    """
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating):
        return GaussianHead(space, config)
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return CategoricalHead(space, config)
    raise ValueError(
        f"Action space {space} has no head: expected a one-dimensional Box of floats, or a Discrete from 0. "
        f"Flatten it in the environment, or bring an RLModule of your own with "
        f"`.rl_module(rl_module_spec=...)`."
    )
