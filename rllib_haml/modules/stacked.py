"""Several actors of one architecture as a single batched network: one forward pass for all of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import tree
from gymnasium import spaces
from torch import Tensor, nn

from rllib_haml._typing import AgentID
from rllib_haml.haml.families import LOG_2PI, Gaussian
from rllib_haml.modules.actor import ACTION_MASK, Actor
from rllib_haml.modules.encoders import flat_size, flatten_rows
from rllib_haml.modules.heads import GaussianHead, Head, LogitsHead
from rllib_haml.modules.images import ImageEncoder
from rllib_haml.modules.recurrent import State

Layer = Callable[[Tensor], Tensor]

# Up to so many columns, a wider product costs less than a second stack's calls.
PADDED_COLUMNS = 64


class StackedActors:
    """G agents' actors as one network on (G, E, ...) tensors.

    Holds a copy of their weights: make a new one when these change. Observations of unequal lengths are
    followed by zeros, here and nowhere else; no output depends on them.

    Args:
        agents: Whose actors these are, one for each.
        actors: G modules with equal `architecture` and action spaces.
    """

    def __init__(self, agents: Sequence[AgentID], actors: Sequence[Actor]):
        first = actors[0]
        self.agents = tuple(agents)
        self._spaces = [actor.observation_space for actor in actors]
        self._width = max(map(flat_size, self._spaces))
        self._step = None if first.memory is None else first.memory.step
        if self._step is None:
            self._layers = stack_layers([actor.network for actor in actors])
        else:
            parts: list[tuple[Any, Any, Any]] = [(a.network, a.memory, a.output) for a in actors]
            self._layers = stack_layers([nn.Sequential(*net, m.input_gates) for net, m, _ in parts])
            self._hidden_gates = stack_layers([nn.Sequential(m.hidden_gates) for _, m, _ in parts])
            self._readout = stack_layers([nn.Sequential(m.norm, output) for _, m, output in parts])
        self._device = next(first.parameters()).device
        # The common case spares a walk through the spaces.
        self._plain = all(map(_is_vector, self._spaces))
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
            return self._gather_vectors([obs[a] for a in self.agents])
        on_device = [tree.map_structure(self._tensor, obs[a]) for a in self.agents]
        rows = [flatten_rows(space, x) for space, x in zip(self._spaces, on_device, strict=True)]
        return torch.stack([_padded(x, self._width) for x in rows])

    def _gather_vectors(self, obs: list[np.ndarray]) -> Tensor:
        rows = np.zeros((len(obs), len(obs[0]), self._width), np.float32)
        for row, x in zip(rows, obs, strict=True):
            row[:, : x.shape[1]] = x
        return torch.from_numpy(rows).to(self._device)

    def gather_masks(self, masks: Mapping[AgentID, np.ndarray]) -> Tensor | None:
        """(G, E, n) bool, all True for an agent without a mask; None if no agent has one."""
        given = {a: self._tensor(masks[a]) for a in self.agents if a in masks}
        if not given:
            return None
        free = torch.ones_like(next(iter(given.values())))
        return torch.stack([given.get(a, free) for a in self.agents])

    def gather_states(self, states: Mapping[AgentID, Any]) -> State:
        """Each part of the agents' recurrent states, (G, E, H); nothing for those that are not recurrent."""
        if self._step is None:
            return {}
        parts = states[self.agents[0]]
        return {p: self._tensor(np.stack([states[a][p] for a in self.agents])) for p in parts}

    def forward(self, obs: Tensor, state: State) -> tuple[Tensor, State]:
        """(G, E, in) flattened observations → (G, E, out) means or logits, and the next recurrent states."""
        out = _through(self._layers, obs)
        if self._step is None:
            return out, state
        state = self._step(out, _through(self._hidden_gates, state["h"]), state)
        return _through(self._readout, state["h"]), state

    def act(self, out: Tensor, mask: Tensor | None, generator: torch.Generator | None) -> tuple[Any, Tensor]:
        """Actions, a tree of (G, E, ...), and their log-probabilities (G, E); the modes without generator.

        Args:
            out: Of `forward`.
            mask: Of `gather_masks`.
        """
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
    """Equal for actors that can be stacked; only the lengths of their observations may differ."""
    layers = tuple(
        (type(layer), getattr(layer, "out_features", None), getattr(layer, "layout", None))
        for layer in actor.network
    )
    masked = ACTION_MASK in getattr(actor.observation_space, "spaces", {})
    columns = -(-flat_size(actor.observation_space) // PADDED_COLUMNS)
    memory = actor.memory and (type(actor.memory), actor.memory.size, type(actor.memory.norm))
    return str(actor.head.family), layers, memory, columns, masked


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
            stacked.append(_normalise(layers))
        elif isinstance(first, nn.Linear):
            weight, bias = _of(layers, "weight"), _of(layers, "bias")[:, None]
            if scale is not None and shift is not None:
                bias = bias + shift[:, None] @ weight.mT
                weight = weight * scale[:, None]
                scale = shift = None
            stacked.append(_linear(weight.mT.contiguous(), bias))
        elif isinstance(first, ImageEncoder):
            stacked.append(_each_its_own(layers))
        else:
            stacked.append(torch.relu_ if isinstance(first, nn.ReLU) else first)
    return stacked


def _through(layers: Sequence[Layer], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _is_vector(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 1 and space.dtype.kind == "f"


def _of(layers: Sequence[nn.Module], name: str) -> Tensor:
    """Their parameters of one name, followed by zeros along the last axis where some are shorter."""
    parameters = [getattr(layer, name).detach() for layer in layers]
    width = max(p.shape[-1] for p in parameters)
    return torch.stack([_padded(p, width) for p in parameters])


def _padded(x: Tensor, width: int) -> Tensor:
    missing = width - x.shape[-1]
    return nn.functional.pad(x, (0, missing)) if missing else x


def _normalise(layers: Sequence[nn.LayerNorm]) -> Layer:
    first = layers[0]
    shape, eps = first.normalized_shape, first.eps
    if any(layer.normalized_shape != shape for layer in layers):
        return _normalise_padded([torch.ones_like(layer.weight) for layer in layers], eps)
    return lambda x: torch.layer_norm(x, shape, None, None, eps)


def _normalise_padded(ones: Sequence[Tensor], eps: float) -> Layer:
    """LayerNorm of rows of unequal lengths (the lengths of `ones`) with zeros behind; these stay zeros."""
    width = max(map(len, ones))
    valid = torch.stack([_padded(x, width) for x in ones])[:, None]
    share = (valid / valid.sum(-1, keepdim=True)).mT.contiguous()

    def normalise(x: Tensor) -> Tensor:
        centred = torch.addcmul(x, x @ share, valid, value=-1)
        variance = centred.square() @ share
        return centred.mul_(variance.add_(eps).rsqrt_())

    return normalise


def _each_its_own(layers: Sequence[nn.Module]) -> Layer:
    return lambda x: torch.stack([layer(rows) for layer, rows in zip(layers, x, strict=True)])


def _linear(weight: Tensor, bias: Tensor) -> Layer:
    return lambda x: torch.baddbmm(bias, x, weight)
