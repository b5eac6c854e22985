"""All agents' actions in as few forward passes as their shapes allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
import torch
import tree
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.numpy import convert_to_numpy
from torch import Tensor

from rllib_haml._typing import AgentID
from rllib_haml.haml.families import ActionFamily
from rllib_haml.modules.actor import ACTION_MASK, Actor
from rllib_haml.modules.adapter import BACKBONE, Adapter
from rllib_haml.modules.distributions import recorded_class, squashing_family
from rllib_haml.modules.stacked import StackedActors, architecture

ModuleID = str

# What a module may say of its actions.
ACTS = (Columns.ACTION_DIST_INPUTS, Columns.ACTIONS, Columns.ACTION_LOGP)


@dataclass
class TeamAction:
    """What E teams do next.

    Attributes:
        actions: Per agent (E, ...) raw samples of its distribution, numpy.
        logp: Per agent (E,) float32, joint over the action's dimensions.
        state: Per agent with a recurrent policy its state afterwards, a tree of (E, ...).
        executed: Per agent (E, ...) what is done of `actions`: the same, but for policies that squash.
    """

    actions: dict[AgentID, Any]
    logp: dict[AgentID, np.ndarray]
    state: dict[AgentID, Any] = field(default_factory=dict)
    executed: dict[AgentID, Any] = field(default_factory=dict)


class TeamModule(MultiRLModule):
    """The team's policies (and, on a learner, its critic).

    To RLlib it is a plain MultiRLModule; `act` is the fast way to all agents' actions. Call `refresh`
    after the weights have changed.

    Attributes:
        squashing: After `refresh`, of each agent whose policy squashes what it draws the family of actions.
    """

    squashing: dict[AgentID, ActionFamily]

    def setup(self) -> None:
        super().setup()
        self._bind_adapters()

    def _bind_adapters(self) -> None:
        """Adapters of a shared policy hold no network: they act through the backbone beside them."""
        modules: dict[str, Any] = {name: module.unwrapped() for name, module in self.items()}
        for module in modules.values():
            if isinstance(module, Adapter):
                module.bind(modules[BACKBONE])

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self._bind_adapters()

    def refresh(self, module_of: Mapping[AgentID, ModuleID]) -> None:
        """Groups the agents into stacks and copies the present weights.

        Args:
            module_of: Each agent's policy, in the environment's order of agents.
        """
        groups: dict[Any, list[AgentID]] = {}
        self._alone: list[AgentID] = []
        self._module_of = dict(module_of)
        families = {agent: squashing_family(self[module_id]) for agent, module_id in module_of.items()}
        self.squashing = {agent: family for agent, family in families.items() if family is not None}
        merged = {name: _merged(self[name].unwrapped()) for name in dict.fromkeys(module_of.values())}
        for agent, module_id in module_of.items():
            module = merged[module_id]
            if type(module) is Actor:
                groups.setdefault(architecture(module), []).append(agent)
            else:
                self._alone.append(agent)
        with torch.no_grad():
            self._stacks = [
                StackedActors(agents, [merged[module_of[agent]] for agent in agents])
                for agents in groups.values()
            ]

    def initial_states(self) -> dict[AgentID, Any]:
        """Per agent with a recurrent policy its state at an episode's start, a tree of arrays."""
        modules = {agent: self[module_id].unwrapped() for agent, module_id in self._module_of.items()}
        return {a: convert_to_numpy(m.get_initial_state()) for a, m in modules.items() if m.is_stateful()}

    @torch.inference_mode()
    def act(
        self,
        obs: Mapping[AgentID, Any],
        action_mask: Mapping[AgentID, np.ndarray],
        state: Mapping[AgentID, Any],
        *,
        generator: torch.Generator,
        explore: bool,
    ) -> TeamAction:
        """Draws every agent's action.

        Args:
            obs: Per agent a tree of arrays (E, ...).
            action_mask: Per agent (E, n_i) bool, for those that have one.
            state: Per agent with a recurrent policy its state, a tree of arrays (E, ...).
            generator: Source of all randomness of the default actors, on the modules' device; modules of
                the user's own draw from torch's global generator.
            explore: Sample; else take each distribution's mode.
        """
        result = TeamAction({}, {})
        for stack in self._stacks:
            rows, masks = stack.gather(obs), stack.gather_masks(action_mask)
            out, after = stack.forward(rows, stack.gather_states(state))
            actions, logp = stack.act(out, masks, generator if explore else None)
            actions, logp = _map(_array, actions), _array(logp)
            for g, agent in enumerate(stack.agents):
                result.actions[agent] = _map(itemgetter(g), actions)
                result.logp[agent] = logp[g]
                if after:
                    result.state[agent] = {part: _array(x[g]) for part, x in after.items()}
        for agent in self._alone:
            batch: dict[str, Any] = {Columns.OBS: _tensors(obs[agent], generator.device)}
            if agent in action_mask:
                batch[ACTION_MASK] = _tensors(action_mask[agent], generator.device)
            if agent in state:
                batch = {k: tree.map_structure(lambda x: x[:, None], v) for k, v in batch.items()}
                batch[Columns.STATE_IN] = _tensors(state[agent], generator.device)
            module = self[self._module_of[agent]]
            out = module.forward_exploration(batch) if explore else module.forward_inference(batch)
            if agent in state:
                result.state[agent] = tree.map_structure(_array, out[Columns.STATE_OUT])
                out = {key: tree.map_structure(lambda x: x[:, 0], out[key]) for key in ACTS if key in out}
            result.actions[agent], result.logp[agent] = _act_alone(module, out, explore)
        squashed = {agent: family.executed(result.actions[agent]) for agent, family in self.squashing.items()}
        result.executed = result.actions | squashed
        return result


def _merged(module: Any) -> Any:
    """An adapter's policy as an ordinary actor; other modules as they are."""
    return module.merged() if isinstance(module, Adapter) else module


def _act_alone(module: RLModule, out: dict[str, Any], explore: bool) -> tuple[Any, np.ndarray]:
    """One agent's actions by RLlib's own protocol: what its `GetActions` connector does with `out`."""
    distribution: Any = None
    if Columns.ACTION_DIST_INPUTS in out:
        distribution = recorded_class(module, explore).from_logits(out[Columns.ACTION_DIST_INPUTS])
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
    return tree.map_structure(_array, actions), _array(logp)


def _map(function: Callable[[Any], Any], actions: Any) -> Any:
    """`function` of each leaf; most actions are one, which spares the walk through a tree."""
    if isinstance(actions, (Tensor, np.ndarray)):
        return function(actions)
    return tree.map_structure(function, actions)


def _array(x: Any) -> np.ndarray:
    return x.cpu().numpy()


def _tensors(arrays: Any, device: torch.device) -> Any:
    return tree.map_structure(lambda x: torch.as_tensor(x).to(device), arrays)
