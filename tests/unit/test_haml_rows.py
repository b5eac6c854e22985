"""Minibatches, masked means, the objective, and one step of the optimizer, against plain loops."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from haml_policies import (
    Array,
    Network,
    NetworkPolicy,
    Ranks,
    Rows,
    TabularPolicy,
    adam,
    apart,
    gradient_ascent,
)
from torch import Tensor

from rllib_haml.haml import (
    ClipDrift,
    Evaluation,
    Everywhere,
    FixedOrder,
    JointRows,
    MirrorStep,
    NoDrift,
    Player,
    Policy,
    generator,
    sweep,
)
from rllib_haml.haml.neighbourhood import descend

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


def loop_mean(values: Array, active: Array, weights: Array) -> float:
    """Weighted mean over what is active, over agents and rows alike."""
    numerator = denominator = 0.0
    for agent, row in itertools.product(*map(range, values.shape)):
        if active[agent, row]:
            numerator += weights[row] * values[agent, row]
            denominator += weights[row]
    return numerator / denominator if denominator else 0.0


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


# --- the objective ------------------------------------------------------------------------------------


def objective_loop(
    tables: tuple[Array, Array],
    policy: TabularPolicy,
    m: Array,
    weights: Array,
    clip: float,
    entropy_coeff: float,
) -> float:
    """E[min(r M, clip(r) M) + c H] over active rows, one row at a time, from probabilities (before, now)."""
    before, now = tables
    values = np.zeros(policy.action.shape)
    for agent, row in itertools.product(*map(range, values.shape)):
        state, action = policy.state[row], policy.action[agent, row]
        ratio = now[state, action] / before[state, action]
        entropy = -sum(p * np.log(p) for p in now[state])
        values[agent, row] = min(ratio * m[row], min(max(ratio, 1 - clip), 1 + clip) * m[row])
        values[agent, row] += entropy_coeff * entropy
    return loop_mean(values, policy.active.numpy(), weights)


@pytest.mark.parametrize("entropy_coeff", [0.0, 0.5])
def test_objective_equals_loop(entropy_coeff: float) -> None:
    """Two agents that share a policy, three states, absences and weights, away from the present policy."""
    rng = np.random.default_rng(2)
    policy = random_table(rng, agents=2, steps=40)
    before, table = policy.evaluate(slice(None)), policy.table()
    m, weights = rng.normal(size=40), rng.random(40)
    policy.logits.data += torch.tensor(0.5 * rng.normal(size=policy.logits.shape))
    player = Player(policy, ClipDrift(0.2), Everywhere(1), entropy_coeff)
    rows = JointRows.whole(40, weights=torch.tensor(weights))
    step = MirrorStep(player, torch.full((40,), 0.5), torch.tensor(2 * m), before, rows, (0,))
    expected = objective_loop((table, policy.table()), policy, m, weights, 0.2, entropy_coeff)
    unclipped = objective_loop((table, policy.table()), policy, m, weights, 9.0, entropy_coeff)
    assert abs(step.objective().item() - expected) < 1e-12
    assert abs(step.objective().item() - unclipped) > 1e-3


def random_table(rng: np.random.Generator, agents: int, steps: int, present: float = 0.7) -> TabularPolicy:
    return TabularPolicy(
        rng.dirichlet(np.ones(4), size=3),
        rng.integers(4, size=(agents, steps)),
        state=rng.integers(3, size=steps),
        active=rng.random((agents, steps)) < present,
        optimizer=gradient_ascent(0.5),
    )


def one_sweep(policy: Policy, advantage: Array | Tensor, entropy_coeff: float = 0.0) -> None:
    """One agent's full-batch sweep of two epochs."""
    sweep(
        {"only": Player(policy, ClipDrift(0.2), Everywhere(2), entropy_coeff)},
        lambda log_factor: torch.as_tensor(advantage),
        order=FixedOrder(("only",)),
        rows=JointRows.whole(len(advantage)),
    )


class EntropyTimesRows(TabularPolicy):
    """Control: an entropy that grows with the batch, as a (R,) by (R, 1) broadcast makes it."""

    def evaluate(self, rows: Rows) -> Evaluation:
        found = super().evaluate(rows)
        return replace(found, entropy=found.entropy * found.entropy.shape[1])


@pytest.mark.parametrize("table", [TabularPolicy, EntropyTimesRows])
def test_entropy_is_per_sample(table: type[TabularPolicy]) -> None:
    """A batch repeated 50 times gives the same bonus and the same weights; a bonus per batch does not."""
    rng = np.random.default_rng(3)
    probabilities, action = rng.dirichlet(np.ones(4)), rng.integers(4, size=8)
    advantage = rng.normal(size=8)
    logits, bonuses = [], []
    for repeat in (1, 50):
        policy = table(probabilities, np.tile(action, repeat))
        player = Player(policy, NoDrift(), Everywhere(1), 0.3)
        rows, zero = JointRows.whole(8 * repeat), torch.zeros(8 * repeat)
        step = MirrorStep(player, zero, zero, policy.evaluate(slice(None)), rows, (0,))
        bonuses.append(step.objective().item())
        one_sweep(policy, np.tile(advantage, repeat), 0.3)
        logits.append(policy.logits.detach().clone())
    entropy = -sum(p * np.log(p) for p in probabilities)
    per_sample = table is TabularPolicy
    assert (abs(bonuses[1] - 0.3 * entropy) < 1e-12) == per_sample
    assert (abs(bonuses[0] - bonuses[1]) < 1e-12) == per_sample
    assert (apart(logits[0], logits[1]) < 1e-12) == per_sample


class Loud(NetworkPolicy):
    """Says what is huge, but finite, of the rows without action."""

    def evaluate(self, rows: Rows) -> Evaluation:
        found, active = super().evaluate(rows), self.active[:, rows]
        return replace(
            found,
            log_prob=torch.where(active, found.log_prob, -1e30 * found.log_prob),
            entropy=torch.where(active, found.entropy, 1e30 * found.entropy),
        )


@pytest.mark.parametrize("masked", [True, False])
def test_inactive_rows_contribute_nothing(masked: bool) -> None:
    """The weights are those of a sweep on the other rows alone, although observations, actions,
    log-probabilities, entropies and advantages are huge where the agent was absent. Control: not if the
    mask is lost."""
    rng = np.random.default_rng(4)
    active = torch.tensor(rng.random(30) < 0.7)
    obs, action = torch.tensor(rng.normal(size=(30, 5))), torch.tensor(rng.normal(size=(30, 2)))
    advantage = torch.tensor(rng.normal(size=30))
    network = Network(5, 2, gaussian=True)
    others_alone = NetworkPolicy(copy.deepcopy(network), obs[active], action[active])
    one_sweep(others_alone, advantage[active], 0.01)
    if masked:
        obs[~active], action[~active], advantage[~active] = 1e3 * obs[~active], 1e3, 1e30
        all_rows = Loud(copy.deepcopy(network), obs, action, active=active)
    else:
        all_rows = NetworkPolicy(copy.deepcopy(network), obs, action)
    one_sweep(all_rows, advantage, 0.01)
    furthest = max(map(apart, others_alone.network.parameters(), all_rows.network.parameters()))
    assert furthest < 1e-12 if masked else furthest > 1e-4
    assert max(map(apart, network.parameters(), others_alone.network.parameters())) > 1e-4


@pytest.mark.parametrize("advantage", [float("nan"), float("inf")])
def test_advantage_of_an_absent_row_may_be_anything(advantage: float) -> None:
    """It reaches neither weights nor compound ratio."""
    rng = np.random.default_rng(5)
    policy, same = (random_table(np.random.default_rng(5), 1, 40) for _ in range(2))
    clean = rng.normal(size=40)
    poisoned = np.where(policy.active[0].numpy(), clean, advantage)
    one_sweep(policy, clean)
    one_sweep(same, poisoned)
    assert torch.equal(policy.logits, same.logits)


def test_a_player_that_never_acts_stays() -> None:
    """Its policy does not move under plain gradient steps, and the ratio stays 1."""
    rng = np.random.default_rng(6)
    policy = random_table(rng, 1, 20, present=0.0)
    before = policy.logits.detach().clone()
    result = sweep(
        {"only": Player(policy, ClipDrift(0.2), Everywhere(2), 0.1)},
        lambda log_factor: torch.ones(20),
        order=FixedOrder(("only",)),
        rows=JointRows.whole(20),
    )
    assert torch.equal(policy.logits, before)
    assert result.log_factor.abs().max() == 0


# --- one step of the optimizer ------------------------------------------------------------------------


class Adam:
    """Kingma and Ba's algorithm 1 on a numpy vector."""

    def __init__(self, x: Array, lr: float):
        self.x, self.lr = x.copy(), lr
        self.first, self.second, self.steps = np.zeros_like(x), np.zeros_like(x), 0

    def step(self, gradient: Array) -> None:
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first = self.first / (1 - 0.9**self.steps)
        second = self.second / (1 - 0.999**self.steps)
        self.x = self.x - self.lr * first / (np.sqrt(second) + 1e-8)


@pytest.mark.parametrize("grad_clip", [None, 0.5, 1e6])
def test_descend_equals_adam_by_hand(grad_clip: float | None) -> None:
    """Quadratic loss whose last two coordinates drop out after the first step: they glide on, as at zero
    gradient. The norm is reported before the clip, which binds at 0.5 only."""
    rng = np.random.default_rng(7)
    start, target = rng.normal(size=8), rng.normal(size=8) * 4
    used, unused = (torch.nn.Parameter(torch.tensor(x)) for x in (start[:6].reshape(2, 3), start[6:]))
    optimizer, by_hand = adam(0.1)([used, unused]), Adam(start, 0.1)
    for step in range(4):
        gradient = 2 * (by_hand.x - target)
        loss = ((used.flatten() - torch.tensor(target[:6])) ** 2).sum()
        if step == 0:
            loss = loss + ((unused - torch.tensor(target[6:])) ** 2).sum()
        else:
            gradient[6:] = 0
        norm = np.sqrt(sum(g**2 for g in gradient))
        reported = descend(loss, [used, unused], optimizer, grad_clip, JointRows.whole(1))
        by_hand.step(gradient * (min(1, grad_clip / norm) if grad_clip else 1))
        assert abs(reported.item() - norm) < 1e-9
        assert used.grad is None
        assert unused.grad is None
    tolerance = 1e-4 if grad_clip == 0.5 else 1e-9  # a bound that divides by norm + 1e-6
    assert apart(torch.cat([used.flatten(), unused]), by_hand.x) < tolerance
    after_one = start[6:] - 0.1 * np.sign(2 * (start[6:] - target[6:]))
    assert apart(unused, after_one) > 0.05


def test_clip_bounds_the_step() -> None:
    """Under plain gradient steps the step is as long as the bound; control: longer without it."""
    lengths = []
    for grad_clip in (0.5, None):
        x = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        descend((x**2).sum(), [x], torch.optim.SGD([x], lr=1.0), grad_clip, JointRows.whole(1))
        lengths.append(apart(np.linalg.norm(x.detach() - np.array([3.0, 4.0])), np.zeros(())))
    assert lengths == pytest.approx([0.5, 10.0], abs=1e-6)


def test_descend_sums_over_ranks() -> None:
    """Two ranks' parts of a loss make the step of their sum, on both; one of them may touch nothing."""
    target = torch.tensor([1.0, -2.0], dtype=torch.float64)
    ranks = Ranks(2)

    def work(rank: int) -> Array:
        x, y = (torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
        loss = ((x - target) ** 2).sum() if rank == 0 else 3 * (y * target).sum()
        rows = JointRows(torch.zeros(0, dtype=torch.int64), 1, all_reduce=ranks.all_reduce(rank))
        descend(loss, [x, y], torch.optim.SGD([x, y], lr=0.1), None, rows)
        return torch.cat([x, y]).detach().numpy()

    for found in ranks.run(work):
        assert apart(found, np.array([0.2, -0.4, -0.3, 0.6])) < 1e-12
