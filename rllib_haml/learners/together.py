"""Several modules' policies that move at once, as one player of the sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import tree
from ray.rllib.core.columns import Columns
from torch import Tensor
from torch.nn.functional import pad

from rllib_haml.haml import Evaluation, Player, SweepResult
from rllib_haml.haml.sweep import Rows
from rllib_haml.learners.module_policy import ModulePolicy, RecurrentPolicy
from rllib_haml.modules.adapter import Adapter, forward_together


class Together:
    """All the agents of some policies; whatever of their parameters moves, moves for all of them at once.

    One loss, the mean over all agents' active rows, and one gradient norm for `grad_clip`. The authors' code
    of LoRASA sums the agents' losses and clips each agent's gradient by itself.

    Adapters of one backbone that are not recurrent are evaluated as one network, with one batched product
    for each layer, if they adapt the same parameters and stand for equally many agents; else, policies are
    evaluated one after another.

    Args:
        members: By name.
        optimizers: By the name of the module whose parameters move. They step together.
    """

    def __init__(self, members: Mapping[str, ModulePolicy], optimizers: Mapping[str, torch.optim.Optimizer]):
        self.members, self.moving = dict(members), list(optimizers)
        each = list(self.members.values())
        self.optimizer: Any = _InStep(list(optimizers.values()))
        groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self.agents = [len(policy.active) for policy in each]
        self.active = torch.cat([policy.active for policy in each])
        self.behaviour_logp = torch.cat([policy.behaviour_logp for policy in each])
        kinds = [policy.family for policy in each]
        alike = all(kind == kinds[0] for kind in kinds)
        self.family: Any = kinds[0] if alike else _Families(kinds, self.agents)
        self._stacked: dict[str, Any] | None = _stack(each) if alike and _is_one_network(each) else None

    def parameters(self) -> list[Tensor]:
        return self._parameters

    def evaluate(self, rows: Rows) -> Evaluation:
        """As `Policy.evaluate`; parameters (K, R, P) with zeros behind those of narrower families."""
        if self._stacked is not None:
            return self._evaluate_stacked(self._stacked, rows)
        parts = [policy.evaluate(rows) for policy in self.members.values()]
        width = max(part.parameters.shape[-1] for part in parts)
        return Evaluation(
            torch.cat([part.log_prob for part in parts]),
            torch.cat([part.entropy for part in parts]),
            torch.cat([pad(part.parameters, (0, width - part.parameters.shape[-1])) for part in parts]),
        )

    def _evaluate_stacked(self, stacked: dict[str, Any], rows: Rows) -> Evaluation:
        agents, adapters = self.agents[0], [policy.module for policy in self.members.values()]
        chosen: Any = tree.map_structure(lambda x: x[:, rows].flatten(1, 2), stacked)
        parameters = forward_together(adapters, chosen)
        count = self.active[:, rows].shape[1]

        def by_agent(x: Tensor) -> Tensor:
            """(N, R · K, ...) → (N · K, R, ...)"""
            return x.unflatten(1, (count, agents)).transpose(1, 2).flatten(0, 1)

        return Evaluation(
            by_agent(self.family.log_prob(parameters, chosen[Columns.ACTIONS])),
            by_agent(self.family.entropy(parameters)),
            by_agent(parameters),
        )

    def member(self, name: str, evaluation: Evaluation) -> Evaluation:
        """One member's part."""
        place = list(self.members).index(name)
        start = sum(self.agents[:place])
        own = slice(start, start + self.agents[place])
        return Evaluation(evaluation.log_prob[own], evaluation.entropy[own], evaluation.parameters[own])


def unfolded(result: SweepResult, players: Mapping[str, Player]) -> tuple[SweepResult, dict[str, Player]]:
    """The same update with every member of a `Together` as a player of its own, for figures about it.

    A member's figures of the search, loss and gradient, are those of all together.
    """
    seen = replace(result, order=[], steps={}, after={}, reports={}, faults={})
    alone: dict[str, Player] = {}
    for name in result.order:
        policy: Any = players[name].policy
        together = isinstance(policy, Together)
        for member in policy.members if together else [name]:
            player, step, after = players[name], result.steps[name], result.after[name]
            if together:
                player = replace(player, policy=policy.members[member])
                step = replace(step, player=player, before=policy.member(member, step.before))
                after = policy.member(member, after)
            alone[member] = player
            seen.order.append(member)
            seen.steps[member], seen.after[member] = step, after
            seen.reports[member] = result.reports[name]
            if name in result.faults:
                seen.faults[member] = result.faults[name]
    return seen, alone


class _InStep:
    """Optimizers of different parameters as one."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]):
        self._optimizers = optimizers

    @property
    def state(self) -> dict[Tensor, Any]:
        """By parameter."""
        return {p: state for optimizer in self._optimizers for p, state in optimizer.state.items()}

    def step(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()


@dataclass(frozen=True)
class _Families:
    """Distributions (K, R, P) of several kinds: the first `agents[0]` rows belong to `kinds[0]`, the next
    `agents[1]` to `kinds[1]`, and so on.

    Attributes:
        kinds: Families of action distributions, one for each member.
        agents: How many follow it.
    """

    kinds: Sequence[Any]
    agents: Sequence[int]

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """(K, R) KL(parameters ‖ other) in nats."""
        pairs = zip(parameters.split(self.agents), other.split(self.agents), strict=True)
        each = [
            kind.kl(p[..., : kind.size], q[..., : kind.size])
            for kind, (p, q) in zip(self.kinds, pairs, strict=True)
        ]
        return torch.cat(each)


def _is_one_network(policies: Sequence[ModulePolicy]) -> bool:
    if not all(isinstance(policy.module, Adapter) for policy in policies):
        return False
    adapters = [policy.module for policy in policies]
    return (
        not any(isinstance(policy, RecurrentPolicy) for policy in policies)
        and len({len(policy.active) for policy in policies}) == 1
        and all(adapter.observation_space == adapters[0].observation_space for adapter in adapters)
        and len({tuple(target.name for target in adapter.lora.targets) for adapter in adapters}) == 1
    )


def _stack(policies: Sequence[ModulePolicy]) -> dict[str, Any] | None:
    """Their inputs and actions, (N, S, K, ...); None if only some have a mask."""
    columns = [policy.inputs | {Columns.ACTIONS: policy.actions} for policy in policies]
    if any(part.keys() != columns[0].keys() for part in columns):
        return None
    stacked: Any = tree.map_structure(lambda *parts: torch.stack(parts), *columns)
    return stacked
