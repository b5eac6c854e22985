"""The objective and one step of the optimizer, against plain loops."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

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
    loop_mean,
    random_table,
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
    sweep,
)
from rllib_haml.haml.neighbourhood import descend

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
