"""Minibatches and masked means, against plain loops."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from haml_policies import (
    Ranks,
    apart,
    loop_mean,
    random_table,
)
from torch import Tensor

from rllib_haml.haml import (
    FixedOrder,
    JointRows,
    MirrorStep,
    NoDrift,
    Player,
    generator,
    sweep,
)

# --- minibatches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 8, 22])
def test_minibatches_partition_the_rows(size: int) -> None:
    """Each row once, in slices of at most `size`, equally long; permuted, by the key alone."""

    def cut(*key: int) -> list[list[int]]:
        return [torch.as_tensor(m).tolist() for m in JointRows.whole(23).minibatches(size, *key)]

    found = cut(1, 2)
    flat = list(itertools.chain(*found))
    assert sorted(flat) == list(range(23))
    assert flat != sorted(flat)
    lengths = [len(m) for m in found]
    assert len(lengths) == math.ceil(23 / size)
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1, "no remnant takes a whole step"
    assert cut(1, 2) == found
    assert cut(1, 3) != found


@pytest.mark.parametrize("size", [None, 23, 100])
def test_one_minibatch_is_the_whole_batch(size: int | None) -> None:
    assert list(JointRows.whole(23).minibatches(size, 0)) == [slice(None)]


@pytest.mark.parametrize("first", [0, 2, 11, 23])
def test_two_ranks_share_each_minibatch(first: int) -> None:
    """The ranks' rows of each minibatch are together those of one rank, also where one holds few or none."""
    order = np.random.default_rng(0).permutation(23)
    shares = [torch.tensor(np.sort(part)) for part in (order[:first], order[first:])]
    ranks = [list(JointRows(index, 23).minibatches(6, 4, 2)) for index in shares]
    whole = list(JointRows.whole(23).minibatches(6, 4, 2))
    assert [len(cut) for cut in ranks] == [len(whole)] * 2
    for one, *parts in zip(whole, *ranks, strict=True):
        found = torch.cat([index[part] for index, part in zip(shares, parts, strict=True)])
        assert sorted(found.tolist()) == sorted(torch.as_tensor(one).tolist())


@pytest.mark.parametrize("size", [1, 5, 8, 22])
def test_rows_of_one_unit_stay_together(size: int) -> None:
    """Equally many units in each minibatch, their rows in order; on two ranks the same ones."""
    lengths = [3, 3, 1, 3, 3, 2, 3, 3, 2]
    units = torch.tensor([u for u, length in enumerate(lengths) for _ in range(length)])
    rows = JointRows(torch.arange(23), 23, units=units)
    found = [torch.as_tensor(m) for m in rows.minibatches(size, 1, 2)]
    assert len(found) == min(math.ceil(23 / size), len(lengths))
    assert sorted(torch.cat(found).tolist()) == list(range(23))
    counts = []
    for part in found:
        pieces = [list(group) for _, group in itertools.groupby(part.tolist(), lambda r: int(units[r]))]
        assert all(piece == sorted(piece) for piece in pieces)
        assert [len(piece) for piece in pieces] == [lengths[int(units[piece[0]])] for piece in pieces]
        counts.append(len(pieces))
    assert max(counts) - min(counts) <= 1
    assert torch.cat(found).tolist() != list(range(23)), "permuted"
    assert [m.tolist() for m in found] != [torch.as_tensor(m).tolist() for m in rows.minibatches(size, 1, 3)]
    shares = [
        torch.isin(units, torch.tensor(own)).nonzero().flatten() for own in ([0, 3, 8], [1, 2, 4, 5, 6, 7])
    ]
    ranks = [list(JointRows(index, 23, units=units).minibatches(size, 1, 2)) for index in shares]
    for one, *parts in zip(found, *ranks, strict=True):
        together = torch.cat([index[part] for index, part in zip(shares, parts, strict=True)])
        assert sorted(together.tolist()) == sorted(one.tolist())


def test_units_of_one_row_are_rows() -> None:
    alone = JointRows(torch.arange(23), 23, units=torch.arange(23)).minibatches(6, 4)
    for one, other in zip(alone, JointRows.whole(23).minibatches(6, 4), strict=True):
        assert torch.as_tensor(one).tolist() == torch.as_tensor(other).tolist()


def test_generators_of_different_keys_differ() -> None:
    """Also of keys that differ by zeros at the end, as an update's and its first epoch's do."""
    keys = [(), (0,), (0, 0), (1, 2), (1, 2, 0), (1, 2, 0, 0), (2, 1), (0, 1, 2)]
    draws = [tuple(torch.rand(3, generator=generator("cpu", *key)).tolist()) for key in keys]
    again = [tuple(torch.rand(3, generator=generator("cpu", *key)).tolist()) for key in keys]
    assert draws == again
    assert len(set(draws)) == len(keys)


@dataclass
class Cuts:
    """Keeps the first minibatches of two epochs, and leaves the policy as it is."""

    seen: list[tuple[int, ...]]

    def maximise(self, step: MirrorStep) -> dict[str, Tensor]:
        for epoch in range(2):
            self.seen.append(tuple(torch.as_tensor(next(step.minibatches(10, epoch))).tolist()))
        return {}


def test_every_step_has_its_own_permutation() -> None:
    """Of three agents, two updates and two epochs, no two are alike; a repetition is."""

    def cuts(*updates: int) -> list[tuple[int, ...]]:
        seen: list[tuple[int, ...]] = []
        rng = np.random.default_rng(0)
        players = {n: Player(random_table(rng, 1, 40), NoDrift(), Cuts(seen)) for n in "abc"}
        for update in updates:
            sweep(
                players,
                lambda log_factor: torch.zeros(40),
                order=FixedOrder(("c", "a", "b")),
                rows=JointRows.whole(40),
                key=(5, update),
            )
        return seen

    assert len(set(cuts(0, 1))) == 3 * 2 * 2
    assert cuts(1) == cuts(0, 1)[6:]


# --- means --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_mean_equals_loop(weighted: bool) -> None:
    """On all rows and on some, over three agents; what is inactive may be anything."""
    rng = np.random.default_rng(0)
    values, active = rng.normal(size=(3, 20)), rng.random((3, 20)) < 0.6
    values[~active] = np.inf
    weights = rng.random(20) / 50 if weighted else np.ones(20)  # probabilities: their sum is below 1
    rows = JointRows.whole(20, weights=torch.tensor(weights) if weighted else None)
    assert (
        apart(rows.mean(torch.tensor(values), torch.tensor(active)), loop_mean(values, active, weights))
        < 1e-12
    )
    some = np.array([3, 17, 5, 9])
    found = rows.mean(torch.tensor(values[:, some]), torch.tensor(active[:, some]), torch.tensor(some))
    assert apart(found, loop_mean(values[:, some], active[:, some], weights[some])) < 1e-12
    assert abs(found.item() - values[:, some][active[:, some]].sum() / active[:, some].size) > 1e-3


@pytest.mark.parametrize("first", [0, 3, 20])
def test_means_of_two_ranks_add_up(first: int) -> None:
    """Own numerator over the global weight: unequal or empty shares add up. Control: their means do not."""
    rng = np.random.default_rng(1)
    values, active, weights = rng.normal(size=(2, 20)), rng.random((2, 20)) < 0.5, rng.random(20)
    ranks = Ranks(2)
    shares = np.split(np.arange(20), [first])

    def work(rank: int) -> tuple[float, float]:
        share = shares[rank]
        v, a = torch.tensor(values[:, share]), torch.tensor(active[:, share])
        rows = JointRows(torch.tensor(share), 20, torch.tensor(weights[share]), ranks.all_reduce(rank))
        alone = JointRows(rows.index, 20, rows.weights)
        return rows.mean(v, a).item(), alone.mean(v, a).item()

    parts = np.array(ranks.run(work))
    expected = loop_mean(values, active, weights)
    assert abs(parts[:, 0].sum() - expected) < 1e-12
    assert abs(parts[:, 1].mean() - expected) > 1e-3


def test_mean_of_nothing_is_zero() -> None:
    """With a zero gradient, and not a number over nothing."""
    values = torch.randn(2, 4, requires_grad=True)
    mean = JointRows.whole(4).mean(values, torch.zeros(2, 4, dtype=torch.bool))
    mean.backward()
    assert mean.item() == 0
    assert values.grad is not None
    assert values.grad.abs().max() == 0
