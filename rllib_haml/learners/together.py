"""Several modules' policies that move at once, as one player of the sweep."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rllib_haml.haml import Evaluation, Player, SweepResult
from rllib_haml.haml.sweep import Rows
from rllib_haml.learners.module_policy import ModulePolicy
from rllib_haml.learners.stacked_policy import stacked
from rllib_haml.modules.adapter_stack import in_stacks


class Together:
    """All the agents of some policies; whatever of their parameters moves, moves for all of them at once.

    One loss, the mean over all agents' active rows, and one gradient norm for `grad_clip`. The authors' code
    of LoRASA sums the agents' losses and clips each agent's gradient by itself.

    Those of one backbone with equal spaces that adapt the same parameters are evaluated as one network,
    with one batched product for each layer.

    Args:
        members: Policies of adapters, by name.
        optimizers: By the name of the module whose parameters move. They step together.

    Attributes:
        owned: As of `HasOwners`: an adapter moves by its own agents' rows, the backbone by everyone's.
    """

    def __init__(self, members: Mapping[str, ModulePolicy], optimizers: Mapping[str, torch.optim.Optimizer]):
        stacks = in_stacks({name: policy.module for name, policy in members.items()})
        self.members = {name: members[name] for stack in stacks for name in stack}
        self.moving = list(optimizers)
        self._parts = parts = [stacked([members[name] for name in stack]) for stack in stacks]
        self.optimizer: Any = _InStep(list(optimizers.values()))
        self.active = torch.cat([part.active for part in parts])
        self.owned = [
            (_parameters(optimizer), members[name].active if name in members else self.active)
            for name, optimizer in optimizers.items()
        ]
        self.behaviour_logp = torch.cat([part.behaviour_logp for part in parts])
        families = [part.family for part in parts]
        several = len(families) > 1
        self.family: Any = _Families(families, [len(p.active) for p in parts]) if several else families[0]

    def parameters(self) -> list[Tensor]:
        return [parameter for own, _ in self.owned for parameter in own]

    def evaluate(self, rows: Rows) -> Evaluation:
        """As `Policy.evaluate`; parameters (K, R, P) with zeros behind those of narrower families."""
        parts = [policy.evaluate(rows) for policy in self._parts]
        width = max(part.parameters.shape[-1] for part in parts)
        return Evaluation(
            torch.cat([part.log_prob for part in parts]),
            torch.cat([part.entropy for part in parts]),
            torch.cat([pad(part.parameters, (0, width - part.parameters.shape[-1])) for part in parts]),
        )

    def member(self, name: str, evaluation: Evaluation) -> Evaluation:
        """One member's part."""
        agents = {member: len(policy.active) for member, policy in self.members.items()}
        start = sum(itertools.islice(agents.values(), list(agents).index(name)))
        own = slice(start, start + agents[name])
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


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


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
        kinds: Families of action distributions.
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
