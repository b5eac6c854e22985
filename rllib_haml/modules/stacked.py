"""Several actors of one architecture as a single batched network: one forward pass for all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import tree
from gymnasium import spaces
from torch import Tensor, nn

from rllib_haml.haml.families import LOG_2PI, Gaussian
from rllib_haml.modules.actor import ACTION_MASK, Actor
from rllib_haml.modules.encoders import flatten_rows
from rllib_haml.modules.heads import GaussianHead, Head, LogitsHead

AgentID = Hashable
Layer = Callable[[Tensor], Tensor]


class StackedActors:
    """G agents' actors as one network on (G, E, ...) tensors.

    Holds a copy of their weights: make a new one when these change.

    Args:
        agents: Whose actors these are, one for each.
        actors: G modules with equal `architecture` and action spaces.
    """

    def __init__(self, agents: Sequence[AgentID], actors: Sequence[Actor]):
        first = actors[0]
        self.agents, self._space = tuple(agents), first.observation_space
        self._layers = stack_layers([actor.network for actor in actors])
        self._device = next(first.parameters()).device
        # The common case spares a walk through the space.
        space = self._space
        self._plain = isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype.kind == "f"
        self._family = first.head.family
        # Logits are parameters already; other heads add what does not depend on the observation.
        self._heads: list[Head] = [] if isinstance(first.head, LogitsHead) else [a.head for a in actors]
        self._std: Tensor | None = None
        if isinstance(self._family, Gaussian):
            log_std = torch.stack([a.head.log_scale() for a in actors if isinstance(a.head, GaussianHead)])
            self._std = log_std.exp()[:, None]
            # log-density at the mean, (G, 1)
            self._peak = -(log_std + 0.5 * LOG_2PI).sum(-1, keepdim=True)

    def gather(self, obs: Mapping[AgentID, Any]) -> Tensor:
        """Each agent's tree of arrays (E, ...), flattened: (G, E, in)."""
        if self._plain:
            return torch.from_numpy(np.stack([obs[a] for a in self.agents])).to(self._device)
        on_device = [tree.map_structure(self._tensor, obs[a]) for a in self.agents]
        return torch.stack([flatten_rows(self._space, rows) for rows in on_device])

    def gather_masks(self, masks: Mapping[AgentID, np.ndarray]) -> Tensor | None:
        """(G, E, n) bool, all True for an agent without a mask; None if no agent has one."""
        given = {a: self._tensor(masks[a]) for a in self.agents if a in masks}
        if not given:
            return None
        free = torch.ones_like(next(iter(given.values())))
        return torch.stack([given.get(a, free) for a in self.agents])

    def forward(self, obs: Tensor) -> Tensor:
        """(G, E, in) flattened observations → (G, E, out) means or logits."""
        for layer in self._layers:
            obs = layer(obs)
        return obs

    def act(self, obs: Tensor, mask: Tensor | None, generator: torch.Generator | None) -> tuple[Any, Tensor]:
        """Actions, a tree of (G, E, ...), and their log-probabilities (G, E); the modes without generator."""
        out = self.forward(obs)
        if self._std is not None:
            return self._act_gaussian(out, self._std, generator)
        parameters = (
            torch.stack([h(x) for h, x in zip(self._heads, out, strict=True)]) if self._heads else out
        )
        if mask is not None:
            parameters = self._family.masked(parameters, mask)
        if generator is None:
            return self._family.mode(parameters)
        return self._family.sample(parameters, generator)

    def _act_gaussian(
        self, mean: Tensor, std: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """What the family does, without building its parameters: the hot path of MuJoCo."""
        if generator is None:
            return mean, self._peak.expand(mean.shape[:-1])
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        logp = torch.add(self._peak, noise.square().sum(-1), alpha=-0.5)
        return torch.addcmul(mean, std, noise), logp

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array).to(self._device)


def architecture(actor: Actor) -> Hashable:
    """Equal for actors that can be stacked."""
    shapes = tuple((name, tuple(p.shape)) for name, p in actor.named_parameters())
    kinds = tuple(type(layer) for layer in actor.network)
    masked = ACTION_MASK in getattr(actor.observation_space, "spaces", {})
    return str(actor.head.family), kinds, shapes, str(actor.observation_space), masked


def stack_layers(networks: Sequence[nn.Sequential]) -> list[Layer]:
    """Functions (G, E, in) → (G, E, out) for networks of `encoders.mlp`.

    A LayerNorm's scale and shift are folded into the linear layer that follows it.
    """
    stacked: list[Layer] = []
    scale = shift = None
    for layers in zip(*networks, strict=True):
        first = layers[0]
        if isinstance(first, nn.LayerNorm):
            scale, shift = _of(layers, "weight"), _of(layers, "bias")
            stacked.append(_normalise(first))
        elif isinstance(first, nn.Linear):
            weight, bias = _of(layers, "weight"), _of(layers, "bias")[:, None]
            if scale is not None and shift is not None:
                bias = bias + shift[:, None] @ weight.mT
                weight = weight * scale[:, None]
                scale = shift = None
            stacked.append(_linear(weight.mT.contiguous(), bias))
        else:
            stacked.append(torch.relu_ if isinstance(first, nn.ReLU) else first)
    return stacked


def _of(layers: Sequence[nn.Module], name: str) -> Tensor:
    return torch.stack([getattr(layer, name).detach() for layer in layers])


def _normalise(layer: nn.LayerNorm) -> Layer:
    shape, eps = layer.normalized_shape, layer.eps
    return lambda x: torch.layer_norm(x, shape, None, None, eps)


def _linear(weight: Tensor, bias: Tensor) -> Layer:
    return lambda x: torch.baddbmm(bias, x, weight)
