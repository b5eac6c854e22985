"""All agents' actions in as few forward passes as their shapes allow."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.rl_module import RLModule
from torch import Tensor, nn

from rllib_haml.modules.actor import ACTION_MASK, Actor
from rllib_haml.modules.encoders import flatten_rows
from rllib_haml.modules.heads import MASKED_LOGIT, GaussianHead

AgentID = Hashable
ModuleID = str


@dataclass
class TeamAction:
    """What E teams do next.

    Attributes:
        actions: Per agent (E, ...) raw samples of its distribution, numpy.
        logp: Per agent (E,) float32, joint over the action's dimensions.
    """

    actions: dict[AgentID, Any]
    logp: dict[AgentID, np.ndarray]


class StackedActors:
    """G actors of one architecture as a single batched network.

    Holds a copy of their weights: make a new one when these change.

    Args:
        agents: Whose actors these are, one for each.
        actors: G modules with equal architectures and action spaces.
    """

    def __init__(self, agents: list[AgentID], actors: list[Actor]):
        self.agents, self.space = agents, actors[0].observation_space
        self.layers = [_stack(layers) for layers in zip(*(a.network for a in actors), strict=True)]
        self.log_std: Tensor | None = None
        if isinstance(actors[0].head, GaussianHead):
            scales = [actor.head.log_scale() for actor in actors if isinstance(actor.head, GaussianHead)]
            self.log_std = torch.stack(scales)[:, None]
            self.std = self.log_std.exp()
            self.norm = 0.5 * math.log(2 * math.pi) + self.log_std

    def forward(self, obs: Tensor) -> Tensor:
        """(G, E, in) flattened observations → (G, E, out) means or logits."""
        for layer in self.layers:
            obs = layer(obs)
        return obs

    def act(self, obs: Tensor, mask: Tensor | None, generator: torch.Generator | None):
        """Actions (G, E, ...) and their log-probabilities (G, E); the modes if there is no generator."""
        out = self.forward(obs)
        if self.log_std is not None:
            if generator is None:
                return out, (-self.norm).sum(-1).expand(out.shape[:-1])
            noise = torch.randn(out.shape, generator=generator, device=out.device, dtype=out.dtype)
            return out + self.std * noise, (-0.5 * noise.square() - self.norm).sum(-1)
        if mask is not None:
            out = out.masked_fill(~mask, MASKED_LOGIT)
        logp = out.log_softmax(-1)
        if generator is None:
            action = logp.argmax(-1)
        else:
            choices = logp.exp().flatten(0, 1)
            action = torch.multinomial(choices, 1, generator=generator).view(logp.shape[:-1])
        return action, logp.gather(-1, action[..., None]).squeeze(-1)


class TeamModule(MultiRLModule):
    """The team's policies (and, on a learner, its critic).

    To RLlib it is a plain MultiRLModule; `act` is the fast way to all agents' actions. Call `refresh`
    after the weights have changed.
    """

    def refresh(self, module_of: Mapping[AgentID, ModuleID]) -> None:
        """Groups the agents into stacks and copies the present weights.

        Args:
            module_of: Each agent's policy, in the environment's order of agents.
        """
        groups: dict[Any, list[AgentID]] = {}
        self._alone: list[AgentID] = []
        self._module_of = dict(module_of)
        for agent, module_id in module_of.items():
            module = self[module_id].unwrapped()
            if type(module) is Actor:
                groups.setdefault(_architecture(module), []).append(agent)
            else:
                self._alone.append(agent)
        with torch.no_grad():
            self._stacks = [
                StackedActors(agents, [self[module_of[a]].unwrapped() for a in agents])  # type: ignore
                for agents in groups.values()
            ]

    @torch.inference_mode()
    def act(
        self,
        obs: Mapping[AgentID, Any],
        action_mask: Mapping[AgentID, np.ndarray],
        *,
        generator: torch.Generator,
        explore: bool,
    ) -> TeamAction:
        """Draws every agent's action.

        Args:
            obs: Per agent a tree of arrays (E, ...).
            action_mask: Per agent (E, n_i) bool, for those that have one.
            generator: Source of all randomness of the default actors, on the modules' device; modules of
                the user's own draw from torch's global generator.
            explore: Sample; else take each distribution's mode.
        """
        result = TeamAction({}, {})
        for stack in self._stacks:
            rows = torch.stack([_flat(stack.space, obs[a], generator.device) for a in stack.agents])
            mask = None
            given = {a: _tensor(action_mask[a], generator.device) for a in stack.agents if a in action_mask}
            if given:
                free = torch.ones_like(next(iter(given.values())))
                mask = torch.stack([given.get(a, free) for a in stack.agents])
            actions, logp = stack.act(rows, mask, generator if explore else None)
            actions, logp = actions.cpu().numpy(), logp.cpu().numpy()
            for g, agent in enumerate(stack.agents):
                result.actions[agent], result.logp[agent] = actions[g], logp[g]
        for agent in self._alone:
            batch = {Columns.OBS: tree.map_structure(lambda x: _tensor(x, generator.device), obs[agent])}
            if agent in action_mask:
                batch[ACTION_MASK] = _tensor(action_mask[agent], generator.device)
            module = self[self._module_of[agent]]
            result.actions[agent], result.logp[agent] = _act_alone(module, batch, explore)
        return result


def _act_alone(module: RLModule, batch: dict[str, Any], explore: bool) -> tuple[Any, np.ndarray]:
    """One agent's actions by RLlib's own protocol: what its `GetActions` connector does."""
    out = module.forward_exploration(batch) if explore else module.forward_inference(batch)
    distribution = None
    if Columns.ACTION_DIST_INPUTS in out:
        kind = module.get_exploration_action_dist_cls() if explore else module.get_inference_action_dist_cls()
        distribution = kind.from_logits(out[Columns.ACTION_DIST_INPUTS])
    if Columns.ACTIONS in out:
        actions = out[Columns.ACTIONS]
    elif distribution is not None:
        actions = (distribution if explore else distribution.to_deterministic()).sample()
    else:
        raise ValueError(
            f"{type(module).__name__} returned {sorted(out)}: expected `action_dist_inputs` or `actions`."
        )
    if Columns.ACTION_LOGP in out:
        logp = out[Columns.ACTION_LOGP]
    elif distribution is not None:
        logp = distribution.logp(actions)
    else:
        raise ValueError(f"{type(module).__name__} returned `actions` without `action_logp`.")
    return tree.map_structure(lambda x: x.cpu().numpy(), actions), logp.cpu().numpy()


def _architecture(actor: Actor) -> Any:
    shapes = tuple((name, tuple(p.shape)) for name, p in actor.named_parameters())
    kinds = tuple(type(layer) for layer in actor.network)
    masked = ACTION_MASK in getattr(actor.observation_space, "spaces", {})
    return type(actor.head), kinds, shapes, str(actor.observation_space), masked


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.as_tensor(array).to(device)


def _flat(space: Any, obs: Any, device: torch.device) -> Tensor:
    return flatten_rows(space, tree.map_structure(lambda x: _tensor(x, device), obs))


def _stack(layers: tuple[nn.Module, ...]):
    """One function (G, E, in) → (G, E, out) for G layers of the same kind."""
    first = layers[0]
    if isinstance(first, nn.Linear):
        weight = torch.stack([layer.weight.detach().T for layer in layers]).contiguous()  # type: ignore
        bias = torch.stack([layer.bias.detach() for layer in layers])[:, None]  # type: ignore
        return lambda x: torch.baddbmm(bias, x, weight)
    if isinstance(first, nn.LayerNorm):
        scale = torch.stack([layer.weight.detach() for layer in layers])[:, None]  # type: ignore
        shift = torch.stack([layer.bias.detach() for layer in layers])[:, None]  # type: ignore
        shape, eps = first.normalized_shape, first.eps
        return lambda x: torch.addcmul(shift, nn.functional.layer_norm(x, shape, eps=eps), scale)
    return first
