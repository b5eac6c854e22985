"""What the theory of HAML promises, and where other updates fail, shown exactly on small games."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from haml_games import ASCENT, CLIP, NO_DRIFT, BestMixture, MatrixGame, names
from haml_policies import Array, MeanPolicy, adam, apart, gradient_ascent
from torch import Tensor

from rllib_haml.haml import (
    Drift,
    Everywhere,
    FixedOrder,
    JointRows,
    KLBall,
    KLDrift,
    MirrorStep,
    Neighbourhood,
    Player,
    sweep,
)

EPOCHS = Everywhere(num_epochs=5)

# --- the simultaneous-update trap ---------------------------------------------------------------------

TRAP = np.array([[0.0, 2.0], [2.0, -1.0]])


@pytest.mark.parametrize("drift", [NO_DRIFT, CLIP])
@pytest.mark.parametrize("lr", [0.5, 1.0])
def test_trap_with_gradient_steps(drift: Drift, lr: float) -> None:
    """From π(0) = 0.7 for both, 200 sweeps: together they end at the saddle, J = 0.8; in turn at J → 2."""
    sequential = MatrixGame(TRAP, (0.7, 0.7), gradient_ascent(lr)).play(200, drift=drift)
    together = MatrixGame(TRAP, (0.7, 0.7), gradient_ascent(lr)).play(200, drift=drift, simultaneous=True)
    assert sequential[0] == pytest.approx(0.75)
    assert abs(together[-1] - 0.8) <= 0.02
    assert sequential[-1] >= 1.95
    assert min(np.diff(sequential)) >= 0


@pytest.mark.parametrize(
    "drift, neighbourhood",
    [(KLDrift(1.0), EPOCHS), (KLDrift(1.0, reverse=True), EPOCHS), (NO_DRIFT, KLBall(0.01))],
    ids=["KL drift", "reverse KL drift", "KL ball"],
)
def test_trap_with_other_instances(drift: Drift, neighbourhood: Neighbourhood) -> None:
    """From π(0) = 0.7 for both: in turn J → 2 and never falls; together, and so alike, at most 0.8.

    Rounding alone tears the two apart after some 50 sweeps at the saddle, so these stop at 20.
    """
    sequential = MatrixGame(TRAP, (0.7, 0.7)).play(150, neighbourhood, drift)
    together = MatrixGame(TRAP, (0.7, 0.7)).play(20, neighbourhood, drift, simultaneous=True)
    assert sequential[0] == pytest.approx(0.75)
    assert sequential[-1] >= 1.95
    assert min(np.diff(sequential)) >= -1e-9
    assert max(together) <= 0.8 + 1e-9


def test_trap_with_exact_argmax() -> None:
    """In one iteration: best responses at once end at the worst payoff, −1; one by one at the best, 2."""
    one_by_one = MatrixGame(TRAP, (0.7, 0.7)).play(1, BestMixture(), NO_DRIFT)
    at_once = MatrixGame(TRAP, (0.7, 0.7)).play(1, BestMixture(), NO_DRIFT, simultaneous=True)
    assert one_by_one[-1] == pytest.approx(2, abs=1e-6)
    assert at_once[-1] == pytest.approx(-1, abs=1e-6)


def test_anti_coordination() -> None:
    """Payoff 1 if they differ, from (0, 0): in turn 1 after a sweep; at once a cycle at 0 through (1, 1)."""
    payoff = np.array([[0.0, 1.0], [1.0, 0.0]])
    start = (1 - 1e-4, 1 - 1e-4)
    in_turn = MatrixGame(payoff, start).play(3, BestMixture(), NO_DRIFT)
    at_once = MatrixGame(payoff, start)
    assert in_turn[1:] == pytest.approx([1.0] * 3, abs=1e-3)
    for update in range(6):
        assert at_once.play(1, BestMixture(), NO_DRIFT, simultaneous=True)[-1] <= 1e-3
        assert at_once.policies[0].table()[0, 1 - update % 2] == pytest.approx(1, abs=1e-3)


def test_an_equilibrium_need_not_be_the_optimum() -> None:
    """Payoff [[60, 60], [0, 100]]: J never falls, yet one order stops at 60; the other finds 100."""
    payoff = np.array([[60.0, 60.0], [0.0, 100.0]])
    search = BestMixture(least=1e-6)
    rows_first, columns_first = FixedOrder(("agent0", "agent1")), FixedOrder(("agent1", "agent0"))
    stuck = MatrixGame(payoff, (0.9, 0.9)).play(20, search, NO_DRIFT, order=rows_first)
    found = MatrixGame(payoff, (0.9, 0.9)).play(20, search, NO_DRIFT, order=columns_first)
    assert stuck[-1] == pytest.approx(60, abs=1e-6)
    assert found[-1] == pytest.approx(100, abs=1e-6)
    assert min(np.diff(stuck)) >= 0
    assert min(np.diff(found)) >= 0


# --- the Gaussian product game ------------------------------------------------------------------------

NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(24)
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()


@dataclass(frozen=True)
class BestMean:
    """The exact argmax over means within `radius`, for an objective that is linear in the mean."""

    radius: float

    @torch.no_grad()
    def maximise(self, step: MirrorStep) -> dict[str, Tensor]:
        policy = step.player.policy
        assert isinstance(policy, MeanPolicy)
        centre = policy.mean.clone()
        values = {}
        for end in (-self.radius, self.radius):
            policy.mean.copy_(centre + end)
            values[end] = step.objective().item()
        policy.mean.copy_(centre + max(values, key=values.__getitem__))
        return {}


def product_game(sweeps: int, neighbourhood: Neighbourhood, drift: Drift, simultaneous: bool) -> Array:
    """(sweeps + 1, 2) means of two unit-variance players of r = a₁ a₂, by Gauss–Hermite quadrature."""
    policies = [MeanPolicy(-0.25), MeanPolicy(0.25)]
    players = {n: Player(p, drift, neighbourhood) for n, p in zip(names(2), policies, strict=True)}
    weights = torch.tensor(np.outer(NODE_WEIGHTS, NODE_WEIGHTS).flatten())
    means = [[p.mean.item() for p in policies]]
    for update in range(sweeps):
        first, second = np.meshgrid(means[-1][0] + NODES, means[-1][1] + NODES, indexing="ij")
        for policy, action in zip(policies, (first, second), strict=True):
            policy.action = torch.tensor(action.reshape(1, -1))
        advantage = torch.tensor(first.flatten() * second.flatten() - means[-1][0] * means[-1][1])
        sweep(
            players,
            lambda log_factor, advantage=advantage: advantage,
            order=FixedOrder(tuple(players)),
            rows=JointRows.whole(len(weights), weights=weights),
            key=(0, update),
            simultaneous=simultaneous,
        )
        means.append([p.mean.item() for p in policies])
    return np.array(means)


@pytest.mark.parametrize("drift", [NO_DRIFT, CLIP])
def test_product_game_with_gradient_steps(drift: Drift) -> None:
    """At once J decays to 0; in turn it passes 1 and rises. Both follow the closed-form recursion.

    One step is taken where a drift's gradient is zero, so the clip changes nothing.
    """
    together = product_game(80, ASCENT, drift, simultaneous=True)
    in_turn = product_game(80, ASCENT, drift, simultaneous=False)
    for found, follows in ((together, False), (in_turn, True)):
        means = np.array([-0.25, 0.25])
        for row in found[1:]:
            first = means[0] + 0.1 * means[1]
            means = np.array([first, means[1] + 0.1 * (first if follows else means[0])])
            assert apart(row, means) < 1e-9
    j_together, j_in_turn = together.prod(1), in_turn.prod(1)
    assert j_together[0] == j_in_turn[0] == -0.0625
    assert -1e-3 <= j_together[-1] <= 0.01
    assert j_in_turn[-1] >= 1
    assert min(np.diff(j_in_turn)) > 0


def test_product_game_with_kl_drift() -> None:
    """Ten steps up μ m − c μ² / 2 from 0, m the other's mean, end at (1 − (1 − c/10)¹⁰) m / c."""
    coeff, epochs = 0.5, 10
    share = (1 - (1 - 0.1 * coeff) ** epochs) / coeff
    for simultaneous in (True, False):
        found = product_game(4, Everywhere(epochs), KLDrift(coeff), simultaneous)
        means = np.array([-0.25, 0.25])
        for row in found[1:]:
            first = means[0] + share * means[1]
            means = np.array([first, means[1] + share * (means[0] if simultaneous else first)])
            assert apart(row, means) < 1e-6
    assert found[-1].prod() > 1


@pytest.mark.parametrize(
    "neighbourhood",
    [BestMean(1.0), KLBall(0.5 + 1e-9, cg_damping=0.0)],
    ids=["exact argmax", "KL ball"],
)
def test_product_game_within_a_ball(neighbourhood: Neighbourhood) -> None:
    """Within KL ≤ ½, one unit of the mean: at once J = −0.5625, worse than before; in turn +0.9375."""
    at_once = product_game(1, neighbourhood, NO_DRIFT, simultaneous=True)[-1]
    in_turn = product_game(1, neighbourhood, NO_DRIFT, simultaneous=False)[-1]
    assert at_once == pytest.approx([0.75, -0.75], abs=1e-6)
    assert at_once.prod() == pytest.approx(-0.5625, abs=1e-6)
    assert in_turn.prod() == pytest.approx(0.9375, abs=1e-6)


# --- the sharing trap ---------------------------------------------------------------------------------


def sharing_trap(agents: int) -> Array:
    """Payoff 1 if the first half plays 0 and the second 1, or the other way round; else 0."""
    payoff = np.zeros((2,) * agents)
    half = (0,) * (agents // 2)
    payoff[half + (1,) * (agents // 2)] = payoff[(1,) * (agents // 2) + half] = 1
    return payoff


@pytest.mark.parametrize(
    "drift, neighbourhood",
    [(CLIP, EPOCHS), (KLDrift(0.2), EPOCHS), (NO_DRIFT, KLBall(0.05))],
    ids=["clip", "KL drift", "KL ball"],
)
@pytest.mark.parametrize("agents", [2, 4, 6, 8])
def test_sharing_trap(agents: int, drift: Drift, neighbourhood: Neighbourhood) -> None:
    """From near π(0) = ½, agents that share a policy never exceed 2^(1-n), others reach 1."""
    payoff, bound = sharing_trap(agents), 2.0 ** (1 - agents)
    start = 0.5 + 0.1 * np.random.default_rng(agents).uniform(-1, 1, agents)
    separate = MatrixGame(payoff, start, adam(0.1)).play(25, neighbourhood, drift)
    shared = MatrixGame(payoff, start[:1], adam(0.1), share=True).play(25, neighbourhood, drift)
    assert separate[0] < 1.2 * bound
    assert separate[-1] >= 0.99
    assert max(shared) <= bound + 1e-12


@pytest.mark.parametrize("drift", [CLIP, KLDrift(0.2)], ids=["clip", "KL drift"])
@pytest.mark.parametrize("agents", [2, 4, 6, 8])
def test_sharing_reaches_its_bound(agents: int, drift: Drift) -> None:
    """That bound is what sharing can do: from π(0) ≈ 0.35 it comes within a tenth of 2^(1-n)."""
    start = 0.35 + 0.01 * np.random.default_rng(agents).uniform(-1, 1, 1)
    shared = MatrixGame(sharing_trap(agents), start, adam(0.02), share=True).play(60, EPOCHS, drift)
    bound = 2.0 ** (1 - agents)
    assert shared[0] < 0.95 * bound
    assert 0.9 * bound <= shared[-1] <= bound + 1e-12
