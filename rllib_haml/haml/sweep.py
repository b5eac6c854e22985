"""The sequential update: one iteration of Template 2 of HAML (Zhong et al. 2024, section 4.2).

    draw a permutation i_1 … i_n of the agents
    for m = 1 … n:
        π^{i_m}_{k+1} = argmax over π in U^{i_m} of E_{s ~ β}[ HAMO(π; D^{i_m}, π^{i_1 … i_{m-1}}_{k+1}) ]

By Proposition 9 the objective (HAMO) is estimated on the rows that π_k sampled: E[r M - D], with r the
ratio of agent i_m's candidate to its present policy and M = Π_{j<m} r^{i_j} · Â, where the ratios are
those by which the earlier agents have already moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from rllib_haml.haml.drift import Drift, Move
from rllib_haml.haml.families import Family
from rllib_haml.haml.finite import NotFinite, attempt
from rllib_haml.haml.flat import flat_gradient
from rllib_haml.haml.order import Order
from rllib_haml.haml.rows import JointRows, generator

if TYPE_CHECKING:
    from rllib_haml.haml.neighbourhood import Neighbourhood

Rows = Tensor | slice
ALL_ROWS = slice(None)
# Parameters, and a tensor that says which rows bear on them.
Part = tuple[Sequence[Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """A policy on some rows.

    Attributes:
        log_prob: (K, R) of the taken actions, joint over the action's dimensions.
        entropy: (K, R) of the action distribution, in nats, summed over the action's dimensions.
        parameters: (K, R, P) of the action distribution, as the policy's `family` reads them.
    """

    log_prob: Tensor
    entropy: Tensor
    parameters: Tensor


class Policy(Protocol):
    """The policy of one agent (K = 1), or of K agents that share it and so move together."""

    @property
    def family(self) -> Family:
        """The kind of its action distributions."""
        ...

    @property
    def active(self) -> Tensor:
        """(K, S) bool: in which joint steps each agent acted."""
        ...

    def evaluate(self, rows: Rows) -> Evaluation:
        """Differentiable, under the present weights; in rows without action anything finite.

        A learner's part of a minibatch may be empty: (K, 0) then, not an error.
        """
        ...

    def parameters(self) -> Sequence[Tensor]: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...


@runtime_checkable
class HasOwners(Protocol):
    """A policy some of whose parameters are some agents' own, although all move at once."""

    @property
    def owned(self) -> Sequence[Part]:
        """All its parameters, each with (K', S) bool of those agents whose rows bear on it."""
        ...


@dataclass(frozen=True)
class Player:
    """π^i with its drift D^i and its neighbourhood operator U^i.

    Attributes:
        entropy_coeff: Weight of an entropy bonus per sample. Not 0: outside HAML's guarantee, since the
            bonus has a gradient at the present policy.
    """

    policy: Policy
    drift: Drift
    neighbourhood: Neighbourhood
    entropy_coeff: float = 0.0


@dataclass(frozen=True)
class MirrorStep:
    """The maximisation that one player faces: HAMO over its neighbourhood.

    Attributes:
        player: Who moves.
        factor: (S,) compound ratio of the local rows: of the agents that moved before.
        advantage: (S,) Â.
        before: The player's policy on all local rows, before it moves.
        rows: Which joint steps these are.
        key: What the step's random numbers depend on.
        place: Which of the sweep's moves this is, divided by their number: in (0, 1].
    """

    player: Player
    factor: Tensor
    advantage: Tensor
    before: Evaluation
    rows: JointRows
    key: tuple[int | str, ...]
    place: float = 1.0

    @property
    def m(self) -> Tensor:
        """(S,) M, the compound ratio times the advantage."""
        return self.factor * self.advantage

    def minibatches(self, size: int | None, epoch: int) -> Iterator[Rows]:
        return self.rows.minibatches(size, *self.key, epoch)

    def objective(self, rows: Rows = ALL_ROWS) -> Tensor:
        """This learner's part of E[r M - D] (+ entropy bonus) over `rows`; a differentiable scalar."""
        return self.value(self.player.policy.evaluate(rows), rows)

    def value(self, new: Evaluation, rows: Rows = ALL_ROWS) -> Tensor:
        """The objective of a policy that evaluates to `new` on `rows`."""
        move = self.move(new, rows)
        value = move.ratio * move.m - self.player.drift(move)
        if self.player.entropy_coeff:
            value = value + self.player.entropy_coeff * new.entropy
        return self.rows.mean(value, self.player.policy.active[:, rows], rows)

    def kl(self, new: Evaluation, rows: Rows = ALL_ROWS) -> Tensor:
        """This learner's part of the mean KL(present ‖ `new`) over `rows`, in nats."""
        return self.rows.mean(self.move(new, rows).kl(), self.player.policy.active[:, rows], rows)

    def bearing(self, rows: Rows = ALL_ROWS) -> list[Part]:
        """The policy's parameters, each with the weight (scalar) of this learner's `rows` that bear on it."""
        policy = self.player.policy
        owned = policy.owned if isinstance(policy, HasOwners) else [(policy.parameters(), policy.active)]
        return [(own, self.rows.weight(active[:, rows], rows).sum()) for own, active in owned]

    def slope(self) -> float:
        """Root mean square of the objective's gradient at the present policy, over the parameters."""
        flat = self.rows.all_reduce(flat_gradient(self.objective(), self.player.policy.parameters()))
        return float(flat.square().mean().sqrt())

    def move(self, new: Evaluation, rows: Rows = ALL_ROWS) -> Move:
        """From the policy before to `new`, its evaluation on `rows`."""
        active = self.player.policy.active[:, rows]
        change = torch.where(active, new.log_prob - self.before.log_prob[:, rows], 0)
        return Move(
            change.exp(),
            self.factor[rows],
            self.advantage[rows],
            self.player.policy.family,
            self.before.parameters[:, rows],
            new.parameters,
            self.place,
        )


@dataclass
class SweepResult:
    """What one sweep did.

    Attributes:
        log_factor: (S,) log of the compound ratio after all players moved; 0 if they moved simultaneously.
        order: Who moved, first mover first.
        steps: What each player faced, its policy on all local rows before it moved included.
        after: Each player's policy on all local rows after it moved.
        reports: Each neighbourhood's figures of its maximisation (scalars).
        faults: Why a player stayed where it was: its move was not finite. Its ratio is then 1, its report
            empty.
    """

    log_factor: Tensor
    order: list[str] = field(default_factory=list)
    steps: dict[str, MirrorStep] = field(default_factory=dict)
    after: dict[str, Evaluation] = field(default_factory=dict)
    reports: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    faults: dict[str, NotFinite] = field(default_factory=dict)


def sweep(
    players: Mapping[str, Player],
    advantage: Callable[[Tensor], Tensor],
    *,
    order: Order,
    rows: JointRows,
    key: tuple[int, ...] = (0,),
    simultaneous: bool = False,
    compound_clip: float | None = None,
) -> SweepResult:
    """Moves every player once, each against the joint advantage corrected for those before it.

    A player whose move is not finite stays, and the sweep goes on with the others.

    Args:
        players: By name; the order draws among the sorted names.
        advantage: Â (S,) of the team, given the `log_factor` (S,) of the agents that have moved.
        order: Who is next.
        rows: Which joint steps the local rows are; its weights, if any, enter every mean.
        key: Seeds the order and the minibatches, alike on every learner: (seed, number of the update).
        simultaneous: Leaves M at Â, so that each player answers to the others' *old* policies: MAPPO.
        compound_clip: Bounds the compound ratio in M to 1 ± this, as A2PO does (Wang et al. 2023, arXiv
            2302.06205); `log_factor` stays as it is.
    """
    names = sorted(players)
    draw = generator(rows.index.device, *key)
    result = SweepResult(torch.zeros(len(rows.index), device=rows.index.device))

    def begin(name: str, estimate: Tensor) -> MirrorStep:
        player, place = players[name], (len(result.order) + 1) / len(names)
        with torch.no_grad():
            before = player.policy.evaluate(ALL_ROWS)
        factor = result.log_factor.to(before.log_prob.dtype).exp()
        if compound_clip is not None:
            factor = factor.clamp(1 - compound_clip, 1 + compound_clip)
        return MirrorStep(player, factor, estimate, before, rows, (*key, name), place)

    while remaining := [name for name in names if name not in result.order]:
        estimate = advantage(result.log_factor)

        def scores(names: Sequence[str] = remaining, estimate: Tensor = estimate) -> dict[str, float]:
            return {name: begin(name, estimate).slope() for name in names}

        name = order.next(result.order, remaining, scores, draw)
        step = begin(name, estimate)
        result.reports[name], after, fault = attempt(step)
        if fault is not None:
            result.faults[name] = fault
        if not simultaneous:
            change = torch.where(step.player.policy.active, after.log_prob - step.before.log_prob, 0)
            result.log_factor = result.log_factor + change.sum(0)
        result.order.append(name)
        result.steps[name], result.after[name] = step, after
    return result
