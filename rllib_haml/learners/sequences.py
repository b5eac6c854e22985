"""A batch's rows as sequences for recurrent networks: cut for backpropagation, exact in their states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tree
from torch import Tensor

from rllib_haml.modules.model_config import ModelConfig


@dataclass(frozen=True)
class Sequences:
    """B sequences of at most L rows each, in which one of K agents was present.

    An agent in one fragment is a *stream*; there are F · K. A row in which the agent is absent belongs to
    no sequence of its: its state stays as it is.

    Attributes:
        rows: (B, L) int64; 0 beyond a sequence's end.
        valid: (B, L) bool: before its end.
        agent, stream: (B,), of each sequence.
        unit: (B,) the unit of rows (see `of`) that it lies in.
        place: (B,) how many sequences of its stream precede it.
        followed: (B,) bool: another one of its stream follows.
    """

    rows: Tensor
    valid: Tensor
    agent: Tensor
    stream: Tensor
    unit: Tensor
    place: Tensor
    followed: Tensor

    @classmethod
    def of(cls, fragment: Tensor, unit: Tensor, present: Tensor) -> Sequences:
        """One sequence for each unit and agent that was present in it.

        Args:
            fragment, unit: (R,) int64, of each row; ascending, and a unit lies in one fragment.
            present: (R, K) bool.
        """
        agents = present.shape[1]
        row, agent = present.nonzero(as_tuple=True)
        pair, sequence = (unit[row] * agents + agent).unique(return_inverse=True)
        position = rank_within(sequence)
        rows = row.new_zeros(len(pair), int(position.max()) + 1 if len(pair) else 1)
        rows[sequence, position] = row
        valid = torch.zeros_like(rows, dtype=torch.bool)
        valid[sequence, position] = True
        agent = pair % agents
        stream = fragment[rows[:, 0]] * agents + agent
        place = rank_within(stream)
        followed = place + 1 < stream.bincount()[stream]
        return cls(rows, valid, agent, stream, pair // agents, place, followed)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Any) -> Sequences:
        return Sequences(**{name: value[chosen] for name, value in vars(self).items()})

    def within(self, units: Tensor) -> Tensor:
        """Which sequences lie in these units, (b,)."""
        return torch.isin(self.unit, units).nonzero().squeeze(-1)

    def gather(self, columns: Any) -> Any:
        """A tree of (R, K, ...) → (B, L, ...); what follows a sequence's end means nothing."""
        return tree.map_structure(lambda x: x[self.rows, self.agent[:, None]], columns)

    def entries(self) -> tuple[Tensor, Tensor]:
        """Row and agent of the M entries before the sequences' ends, in the order of `x[valid]`."""
        return self.rows[self.valid], self.agent[:, None].expand_as(self.rows)[self.valid]

    def scatter(self, values: Tensor, rows: int, agents: int) -> Tensor:
        """(M, ...) values of the entries → (K, R, ...), zeros elsewhere; differentiable."""
        row, agent = self.entries()
        return values.new_zeros(agents, rows, *values.shape[1:]).index_put((agent, row), values)

    @torch.no_grad()
    def states(self, advance: Callable[[Sequences, Any], Any], first: Any) -> Any:
        """The recurrent state before each sequence, by unrolling every stream from its beginning.

        Args:
            advance: From b sequences of equal length without padding, and a tree of the states before
                them (b, ...), to the states after them.
            first: Tree of (F · K, ...), before each stream.

        Returns:
            Tree of (B, ...).
        """
        now = tree.map_structure(torch.clone, first)
        before = tree.map_structure(lambda x: x[self.stream], first)
        lengths = self.valid.sum(-1)
        for place in range(int(self.place.max()) + 1 if len(self) else 0):
            here = (self.place == place).nonzero().squeeze(-1)
            _put(before, here, _at(now, self.stream[here]))
            going = here[self.followed[here]]
            for length in lengths[going].unique().tolist():
                these = going[lengths[going] == length]
                full = self[these].shortened(length)
                _put(now, full.stream, advance(full, _at(before, these)))
        return before

    def shortened(self, length: int) -> Sequences:
        return Sequences(**vars(self) | {"rows": self.rows[:, :length], "valid": self.valid[:, :length]})


def rank_within(group: Tensor) -> Tensor:
    """(M,) how many entries of the same group come before each."""
    counts = group.bincount()
    order = group.argsort(stable=True)
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group[order]]
    return rank


def _at(states: Any, index: Tensor) -> Any:
    return tree.map_structure(lambda x: x[index], states)


def _put(states: Any, index: Tensor, values: Any) -> None:
    for state, value in zip(tree.flatten(states), tree.flatten(values), strict=True):
        state[index] = value


def common_seq_len(modules: Any) -> int | None:
    """The steps of truncated backpropagation that all recurrent modules have in common; None without any.

    Raises:
        ValueError: If they differ.
    """
    default = ModelConfig.max_seq_len
    lengths = {
        n: m.unwrapped().model_config.get("max_seq_len", default)
        for n, m in modules.items()
        if m.is_stateful()
    }
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"max_seq_len differs, {lengths}: minibatches hold the same sequences of all, give them one."
        )
    return next(iter(lengths.values()), None)
