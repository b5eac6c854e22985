"""Who moves when."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from haml_games import NO_DRIFT, RANDOM, names
from haml_policies import TabularPolicy

from rllib_haml.haml import Everywhere, FixedOrder, JointRows, Order, Player, Scores, generator, sweep


class FirstOften:
    """A biased order, as a control: the first of the remaining half of the time."""

    def next(
        self, moved: Sequence[str], remaining: Sequence[str], scores: Scores, generator: torch.Generator
    ) -> str:
        draw = torch.rand((), generator=generator).item()
        return remaining[0] if draw < 0.5 else remaining[int(draw * len(remaining))]


def order_statistic(order: Order, updates: int = 1200) -> float:
    """χ² (5 degrees of freedom) of the six orders in which a sweep moved three agents."""
    policies = {n: TabularPolicy(np.array([0.5, 0.5]), np.zeros(1, dtype=np.int64)) for n in names(3)}
    players = {n: Player(p, NO_DRIFT, Everywhere(num_epochs=0)) for n, p in policies.items()}
    seen: Counter[tuple[str, ...]] = Counter()
    for update in range(updates):
        rows = JointRows.whole(1)
        result = sweep(players, lambda f: torch.zeros(1), order=order, rows=rows, key=(3, update))
        seen[tuple(result.order)] += 1
    expected = updates / 6
    return sum((seen[p] - expected) ** 2 / expected for p in itertools.permutations(names(3)))


def test_random_order_is_uniform() -> None:
    """χ² of 1,200 sweeps lies within its 0.1 % and 99.9 % quantiles; a biased order's does not."""
    assert 0.21 < order_statistic(RANDOM) < 20.5
    assert order_statistic(FirstOften()) > 100


def test_random_order_depends_on_the_key_alone() -> None:
    """Two learners with one key draw one order; other updates draw others."""

    def draw(*key: int) -> tuple[str, ...]:
        random, remaining = generator("cpu", *key), names(6)
        drawn: list[str] = []
        while remaining:
            drawn.append(RANDOM.next(drawn, remaining, dict, random))
            remaining.remove(drawn[-1])
        return tuple(drawn)

    assert draw(1, 2) == draw(1, 2)
    assert len({draw(1, update) for update in range(20)}) > 15


def test_fixed_order() -> None:
    """Keeps its order among those that remain, and names a policy that it does not know."""
    order, random = FixedOrder(("c", "a", "b")), generator("cpu", 0)
    assert order.next([], ["a", "b", "c"], dict, random) == "c"
    assert order.next(["c"], ["b", "a"], dict, random) == "a"
    with pytest.raises(ValueError, match=r"\['d'\].*order: random"):
        order.next([], ["a", "d"], dict, random)
