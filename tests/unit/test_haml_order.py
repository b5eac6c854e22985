"""Who moves when."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from haml_games import NO_DRIFT, RANDOM, names
from haml_policies import Array, Ranks, TabularPolicy
from torch import Tensor

from rllib_haml.haml import (
    Everywhere,
    FixedOrder,
    JointRows,
    MirrorStep,
    Order,
    Player,
    Scores,
    SemiGreedyOrder,
    generator,
    sweep,
)


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


# --- the semi-greedy order ----------------------------------------------------------------------------


def test_semi_greedy_alternates() -> None:
    """First, third, fifth: the highest score, whatever the generator; between them a uniform draw.

    Scores are computed only for the greedy choices.
    """
    score = {"a": 0.1, "b": 0.7, "c": 0.2, "d": 0.9, "e": 0.3}
    calls, second = [], Counter[str]()
    for update in range(600):
        random, moved = generator("cpu", update), list[str]()
        while remaining := sorted(set(score) - set(moved)):

            def scores(remaining: Sequence[str] = remaining) -> dict[str, float]:
                calls.append(len(remaining))
                return {name: score[name] for name in remaining}

            moved.append(SemiGreedyOrder().next(moved, remaining, scores, random))
        assert moved[0] == "d"
        assert moved[2] == max(set(score) - set(moved[:2]), key=score.__getitem__)
        second[moved[1]] += 1
    assert calls == [5, 3, 1] * 600
    assert sorted(second) == ["a", "b", "c", "e"]
    assert 0.07 < sum((n - 150) ** 2 / 150 for n in second.values()) < 16.3, "χ², 3 degrees of freedom"


def random_team(rows: Array, seed: int = 0) -> tuple[dict[str, TabularPolicy], Array, Array]:
    """Three agents of different tables, sometimes absent, on some of 40 rows; advantages and weights."""
    rng = np.random.default_rng(seed)
    policies = {}
    for name, actions in zip(names(3), (2, 3, 4), strict=True):
        table = rng.dirichlet(np.ones(actions), size=2)
        action, state, active = rng.integers(actions, size=40), rng.integers(2, size=40), rng.random(40) < 0.7
        policies[name] = TabularPolicy(table, action[rows], state[rows], active[None, rows])
    return policies, rng.normal(size=40)[rows], rng.random(40)[rows]


def gradient_by_hand(policy: TabularPolicy, m: Array, weights: Array) -> Array:
    """Of E[r M] at the present policy over the logits: Σ w M (e_a − p), row by row."""
    table, gradient = policy.table(), np.zeros(policy.logits.shape)
    weights = weights * policy.active[0].numpy()
    for row, weight in enumerate(weights / weights.sum()):
        state, pull = int(policy.state[row]), -policy.table()[int(policy.state[row])]
        pull[int(policy.action[0, row])] += 1
        gradient[state] += weight * m[row] * pull
    assert gradient.shape == table.shape
    return gradient


def test_scores_are_the_surrogates_own_slopes() -> None:
    """RMS of Σ w M (e_a − p) by numpy, M corrected for those who moved; the greedy mover has the most."""
    policies, advantage, weights = random_team(np.arange(40))
    seen: list[dict[str, float]] = []

    class Recorded(SemiGreedyOrder):
        def next(
            self, moved: Sequence[str], remaining: Sequence[str], scores: Scores, generator: torch.Generator
        ) -> str:
            found = scores()
            expected = {
                name: np.sqrt((gradient_by_hand(policies[name], factor() * advantage, weights) ** 2).mean())
                for name in remaining
            }
            assert found == pytest.approx(expected, rel=1e-9)
            seen.append(dict(found))
            return super().next(moved, remaining, scores, generator)

    start = {name: policy.table() for name, policy in policies.items()}

    def factor() -> Array:
        """The compound ratio of all moves so far, from the tables."""
        result = np.ones(40)
        for name, policy in policies.items():
            state, action = policy.state.numpy(), policy.action[0].numpy()
            ratio = policy.table()[state, action] / start[name][state, action]
            result *= np.where(policy.active[0].numpy(), ratio, 1)
        return result

    result = sweep(
        {name: Player(policy, NO_DRIFT, Everywhere(3)) for name, policy in policies.items()},
        lambda log_factor: torch.tensor(advantage),
        order=Recorded(),
        rows=JointRows.whole(40, weights=torch.tensor(weights)),
    )
    assert result.order[0] == max(seen[0], key=seen[0].__getitem__)
    assert len(set(seen[0].values())) == 3
    assert np.abs(factor() - 1).max() > 0.05


@pytest.mark.parametrize("second", [[], [3], list(range(25, 40))], ids=["none", "one row", "fifteen"])
def test_scores_of_two_learners(second: list[int]) -> None:
    """Equal on both, and those of one learner with all rows; control: not without the sum."""
    parts = [np.setdiff1d(np.arange(40), second), np.array(second, dtype=np.int64)]

    def slopes(rows: Array, all_reduce: Callable[[Tensor], Tensor] | None) -> Array:
        policies, advantage, weights = random_team(rows)
        whole = JointRows(torch.tensor(rows), 40, torch.tensor(weights))
        joint = whole if all_reduce is None else JointRows(whole.index, 40, whole.weights, all_reduce)
        found = []
        for policy in policies.values():
            with torch.no_grad():
                before = policy.evaluate(slice(None))
            player, ones = Player(policy, NO_DRIFT, Everywhere(1)), torch.ones(len(rows), dtype=torch.float64)
            found.append(MirrorStep(player, ones, torch.tensor(advantage), before, joint, (0,)).slope())
        return np.array(found)

    ranks, one = Ranks(2), slopes(np.arange(40), None)
    two = ranks.run(lambda rank: slopes(parts[rank], ranks.all_reduce(rank)))
    assert np.array_equal(two[0], two[1])
    assert np.abs(two[0] - one).max() < 1e-12
    if second:
        assert np.abs(slopes(parts[0], None) - one).max() > 1e-4
