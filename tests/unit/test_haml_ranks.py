"""Two learners, as two threads with a summing barrier, equal one that holds all rows."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from haml_policies import Array, Network, NetworkPolicy, Ranks, TabularPolicy, adam, apart
from torch import Tensor

from rllib_haml.haml import (
    ClipDrift,
    Drift,
    Everywhere,
    JointClipDrift,
    JointRows,
    KLBall,
    KLDrift,
    Neighbourhood,
    NoDrift,
    Order,
    Player,
    RandomOrder,
    SemiGreedyOrder,
    SweepResult,
    sweep,
)

STEPS, MINIBATCH, SWEEPS = 31, 11, 5  # minibatches of 11, 11 and 9
UPPER = np.arange(20, 31)

SHARES = {
    "unequal": np.arange(STEPS) >= 20,
    "interleaved": np.arange(STEPS) % 3 == 2,
    "two rows": np.isin(np.arange(STEPS), [24, 29]),
    "none": np.zeros(STEPS, dtype=bool),
}
RANDOM = RandomOrder()


@dataclass(frozen=True)
class Instance:
    """A member of the HAML family."""

    drift: Drift
    neighbourhood: Neighbourhood
    order: Order = RANDOM
    compound_clip: float | None = None


EPOCHS = Everywhere(num_epochs=2, minibatch_size=MINIBATCH, grad_clip=0.5)
HAPPO = Instance(ClipDrift(0.1), EPOCHS)
INSTANCES = {
    "HAPPO": HAPPO,
    "HATRPO": Instance(NoDrift(), KLBall(0.02)),
    "KL drift": Instance(KLDrift(2.0), EPOCHS),
    "A2PO": Instance(JointClipDrift(0.2, 0.5), EPOCHS, SemiGreedyOrder(), compound_clip=0.05),
}


@dataclass
class Learner:
    """What a learner ends with."""

    weights: Array
    results: list[SweepResult]


class Team:
    """A Gaussian, a categorical that is absent from the last rows, and two that share a table."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.rng = np.random.default_rng(0)
        self.gaussian, self.categorical = Network(5, 2, True), Network(4, 3, False)
        self.obs = {n: torch.tensor(self.rng.normal(size=(STEPS, n))) for n in (4, 5)}
        self.action = torch.tensor(self.rng.normal(size=(STEPS, 2)) * 0.4)
        self.choice = torch.tensor(self.rng.integers(3, size=(STEPS, 1)))
        self.present = torch.tensor(self.rng.random(STEPS) < 0.8)
        self.present[UPPER] = False
        self.table = self.rng.dirichlet(np.ones(3), size=2)
        self.pair = self.rng.integers(3, size=(2, STEPS))
        self.state = self.rng.integers(2, size=STEPS)
        self.pair_active = self.rng.random((2, STEPS)) < 0.7
        self.advantage = torch.tensor(self.rng.normal(size=(SWEEPS, STEPS)))
        self.weights = torch.tensor(self.rng.random(STEPS) + 0.1)

    def learn(
        self,
        rows: Array,
        all_reduce: Callable[[Tensor], Tensor] | None,
        weighted: bool = False,
        instance: Instance = HAPPO,
    ) -> Learner:
        """Five sweeps over the global `rows`, from the same start."""
        optimizer, mine = adam(5e-3), torch.tensor(rows)
        policies = {
            "body": NetworkPolicy(
                copy.deepcopy(self.gaussian), self.obs[5][mine], self.action[mine], optimizer=optimizer
            ),
            "gripper": NetworkPolicy(
                copy.deepcopy(self.categorical),
                self.obs[4][mine],
                self.choice[mine],
                active=self.present[mine],
                optimizer=optimizer,
            ),
            "pair": TabularPolicy(
                self.table, self.pair[:, rows], self.state[rows], self.pair_active[:, rows], optimizer
            ),
        }
        players = {n: Player(p, instance.drift, instance.neighbourhood, 0.01) for n, p in policies.items()}
        whole = JointRows(mine, STEPS, self.weights[mine] if weighted else None)
        joint = whole if all_reduce is None else JointRows(mine, STEPS, whole.weights, all_reduce)
        results = [
            sweep(
                players,
                lambda f, a=advantage: a[mine],
                order=instance.order,
                rows=joint,
                key=(1, update),
                compound_clip=instance.compound_clip,
            )
            for update, advantage in enumerate(self.advantage)
        ]
        parameters = [p.detach().flatten() for policy in policies.values() for p in policy.parameters()]
        return Learner(torch.cat(parameters).numpy(), results)


def shares(name: str) -> list[Array]:
    second = SHARES[name]
    return [np.flatnonzero(~second), np.flatnonzero(second)]


@pytest.mark.parametrize(
    "name, weighted", [("HAPPO", False), *((name, True) for name in INSTANCES)], ids=lambda x: str(x)
)
@pytest.mark.parametrize("split", SHARES)
def test_two_learners_equal_one(split: str, name: str, weighted: bool) -> None:
    """Weights, compound ratio, order and reports of five sweeps agree to 1e-9; the two are bit for bit alike.

    Shares are unequal or empty, minibatches uneven, and with the first split one agent never acts on the
    second learner.
    """
    team, ranks = Team(), Ranks(2)
    parts = shares(split)
    instance = INSTANCES[name]
    one = team.learn(np.arange(STEPS), None, weighted, instance)
    two = ranks.run(lambda rank: team.learn(parts[rank], ranks.all_reduce(rank), weighted, instance))
    assert np.array_equal(two[0].weights, two[1].weights)
    assert apart(two[0].weights, one.weights) < 1e-9
    for update, whole in enumerate(one.results):
        for rows, learner in zip(parts, two, strict=True):
            result = learner.results[update]
            assert result.order == whole.order
            assert len(rows) == 0 or apart(result.log_factor, whole.log_factor[rows]) < 1e-9
            for player, report in whole.reports.items():
                expected = {key: value.item() for key, value in report.items()}
                found = {key: value.item() for key, value in result.reports[player].items()}
                assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", INSTANCES)
def test_learners_that_do_not_sum_differ(name: str) -> None:
    """Control: each on its own rows alone ends elsewhere."""
    team, instance = Team(), INSTANCES[name]
    one = team.learn(np.arange(STEPS), None, instance=instance)
    for rows in shares("unequal"):
        assert apart(team.learn(rows, None, instance=instance).weights, one.weights) > 1e-3


def test_the_instances_differ() -> None:
    """Control: drift, neighbourhood, order and bound are in effect; and the ball's steps were taken."""
    team = Team()
    learners = [team.learn(np.arange(STEPS), None, instance=instance) for instance in INSTANCES.values()]
    for left, right in itertools.combinations(learners, 2):
        assert apart(left.weights, right.weights) > 1e-3
    unbounded = replace(INSTANCES["A2PO"], compound_clip=None)
    assert apart(team.learn(np.arange(STEPS), None, instance=unbounded).weights, learners[3].weights) > 1e-4
    accepted = [r["line_search_accepted"] for result in learners[1].results for r in result.reports.values()]
    assert sum(accepted) >= 12


def test_mean_of_means_differs() -> None:
    """Control: gradients of each learner's own mean, averaged over learners, as if shares were equal."""
    team, ranks = Team(), Ranks(2)
    parts = shares("unequal")
    one = team.learn(np.arange(STEPS), None)

    def averaged(rank: int) -> Callable[[Tensor], Tensor]:
        total = ranks.all_reduce(rank)

        def reduce(tensor: Tensor) -> Tensor:
            if tensor.dim():
                return total(tensor).div_(2)
            # Each learner divides by its own weight; that somebody acted is known to both.
            return tensor if tensor.is_floating_point() else total(tensor)

        return reduce

    two = ranks.run(lambda rank: team.learn(parts[rank], averaged(rank)))
    assert apart(two[0].weights, one.weights) > 1e-3
