"""Which of a train batch's joint steps one learner holds, and how minibatches are cut from them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """A random generator that depends on `key` alone, so that every learner draws the same numbers."""
    numbers = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key]
    # Its length is part of the key: SeedSequence pads with zeros, so (1, 2) and (1, 2, 0) would be one.
    seed = int(np.random.SeedSequence((len(key), *numbers)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device).manual_seed(seed)


def alone(tensor: Tensor) -> Tensor:
    """The all-reduce of a single learner."""
    return tensor


@dataclass(frozen=True)
class JointRows:
    """The rows of the global batch that this learner holds.

    Attributes:
        index: (S_local,) int64, the global row of each local one; ascending.
        total: S, over all learners.
        weights: (S_local,) weight of each row in every mean, or None for ones.
        all_reduce: Sums a tensor over the learners, in place, and returns it.
        units: (S,) int64, ascending from 0: global rows of one number stay together in a minibatch, as
            the rows of a recurrent policy's sequence must; a unit lies on one learner. None: each alone.
    """

    index: Tensor
    total: int
    weights: Tensor | None = None
    all_reduce: Callable[[Tensor], Tensor] = alone
    units: Tensor | None = None

    @classmethod
    def whole(cls, total: int, device: torch.device | str = "cpu", weights: Tensor | None = None):
        """All rows on one learner."""
        return cls(torch.arange(total, device=device), total, weights)

    def minibatches(self, size: int | None, *key: int | str) -> Iterator[Tensor | slice]:
        """Cuts one permutation of the S global rows, or of their units; yields the local rows of each slice.

        Every learner yields equally many, some of them perhaps empty.

        Args:
            size: Joint steps that a minibatch holds at most, over all learners; None is the whole batch.
                Minibatches are equally long, up to one row, so that none of them is a remnant. With units
                there are as many of them, each of equally many units, but none without any.
            key: What the permutation depends on: seed, update, policy, epoch.
        """
        if size is None or size >= self.total:
            yield slice(None)
            return
        device = self.index.device
        count = self.total if self.units is None else int(self.units[-1]) + 1
        order = torch.randperm(count, generator=generator(device, *key), device=device)
        local = torch.full((self.total,), -1, device=device)
        local[self.index] = torch.arange(len(self.index), device=device)
        parts = order.tensor_split(min(-(-self.total // size), count))
        if self.units is not None:
            sizes, rows = self.units.bincount(), order.argsort()[self.units].argsort(stable=True)
            parts = rows.split([int(sizes[part].sum()) for part in parts])
        for part in parts:
            rows = local[part]
            yield rows[rows >= 0]

    def weight(self, active: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """(..., R) what each entry of `active` counts in a mean; 0 where it is not active."""
        return active * (1.0 if self.weights is None else self.weights[rows])

    def mean(
        self, values: Tensor, active: Tensor | None = None, rows: Tensor | slice = slice(None)
    ) -> Tensor:
        """This learner's part of the mean over active rows: the parts of all learners add up to it.

        Args:
            values: (..., R), of the local `rows`.
            active: (..., R) bool; what is not active counts nowhere. None: all rows count.

        Returns:
            A scalar: own numerator over the global weight. 0 if no learner has an active row.
        """
        active = torch.ones_like(values, dtype=torch.bool) if active is None else active
        weight = self.weight(active, rows).to(values.dtype)
        total = self.all_reduce(weight.sum().detach().clone())
        return torch.where(active, values * weight, 0).sum() / torch.where(total > 0, total, 1)
