"""What the theory of HAML promises, shown exactly on small games, through the `sweep` that trains teams.

Joint actions are enumerated and weighted with their probability under the present policies, so that no
number here is noisy. Payoffs, values and optima are computed by numpy.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from haml_policies import (
    Array,
    MakeOptimizer,
    MeanPolicy,
    TabularPolicy,
    adam,
    apart,
    gradient_ascent,
    joint_actions,
    joint_probability,
)
from torch import Tensor

from rllib_haml.haml import (
    ClipDrift,
    Drift,
    Everywhere,
    FixedOrder,
    JointRows,
    MirrorStep,
    Move,
    Neighbourhood,
    NoDrift,
    Order,
    Player,
    RandomOrder,
    Scores,
    generator,
    sweep,
)

VERTEX = 1 - 1e-9  # a pure action, but for what keeps its logarithm finite
ASCENT = Everywhere(num_epochs=1)
NO_DRIFT, CLIP, RANDOM = NoDrift(), ClipDrift(0.2), RandomOrder()
HALF_STEPS = gradient_ascent(0.5)


@dataclass(frozen=True)
class BestMixture:
    """In each state the best of the present policy and of mixtures of it with every pure action.

    Attributes:
        shares: The pure action's shares that are tried; `VERTEX` alone is the exact argmax of what is
            linear in the policy.
        least: The present policy stays unless another is better by more than this.
    """

    shares: tuple[float, ...] = (VERTEX,)
    least: float = 1e-12

    @torch.no_grad()
    def maximise(self, step: MirrorStep) -> dict[str, Tensor]:
        policy = step.player.policy
        assert isinstance(policy, TabularPolicy)
        for state in range(len(policy.logits)):
            rows = (policy.state == state).nonzero().flatten()
            present = policy.logits[state].softmax(-1)
            chosen, best = present, step.objective(rows) + self.least
            for share, action in itertools.product(self.shares, range(len(present))):
                candidate = present * (1 - share)
                candidate[action] += share
                policy.logits[state] = candidate.log()
                value = step.objective(rows)
                if value > best:
                    chosen, best = candidate, value
            policy.logits[state] = chosen.log()
        return {}


def names(count: int) -> list[str]:
    return [f"agent{i}" for i in range(count)]


class MatrixGame:
    """A one-shot game of independent softmax players over all its joint actions."""

    def __init__(
        self,
        payoff: Array,
        first: Sequence[float] | Array,
        optimizer: MakeOptimizer = HALF_STEPS,
        share: bool = False,
    ):
        """`first` holds each player's probability of action 0; with `share` all play the one policy given."""
        self.payoff = np.asarray(payoff, dtype=np.float64)
        self.actions = joint_actions(self.payoff.shape)
        self.share = share
        rows = [self.actions] if share else [self.actions[i] for i in range(len(self.actions))]
        self.policies = [
            TabularPolicy(np.array([p, 1 - p]), action, optimizer=optimizer)
            for p, action in zip(first, rows, strict=True)
        ]

    def probability(self) -> Array:
        tables = [policy.table()[0] for policy in self.policies]
        return joint_probability(tables * len(self.actions) if self.share else tables, self.actions)

    def value(self) -> float:
        """J, the expected payoff."""
        return float(sum(p * r for p, r in zip(self.probability(), self.payoff.flatten(), strict=True)))

    def play(
        self,
        sweeps: int,
        neighbourhood: Neighbourhood = ASCENT,
        drift: Drift = CLIP,
        simultaneous: bool = False,
        order: Order = RANDOM,
    ) -> list[float]:
        """J before and after each sweep."""
        values = [self.value()]
        players = {
            name: Player(policy, drift, neighbourhood)
            for name, policy in zip(names(len(self.policies)), self.policies, strict=True)
        }
        for update in range(sweeps):
            advantage = torch.tensor(self.payoff.flatten() - self.value())
            sweep(
                players,
                lambda log_factor, advantage=advantage: advantage,
                order=order,
                rows=JointRows.whole(self.payoff.size, weights=torch.tensor(self.probability())),
                key=(0, update),
                simultaneous=simultaneous,
            )
            values.append(self.value())
        return values


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


def test_product_game_with_exact_argmax() -> None:
    """Within KL ≤ ½, one unit of the mean: at once J = −0.5625, worse than before; in turn +0.9375."""
    at_once = product_game(1, BestMean(1.0), NO_DRIFT, simultaneous=True)[-1]
    in_turn = product_game(1, BestMean(1.0), NO_DRIFT, simultaneous=False)[-1]
    assert at_once == pytest.approx([0.75, -0.75])
    assert at_once.prod() == pytest.approx(-0.5625)
    assert in_turn.prod() == pytest.approx(0.9375)


# --- the sharing trap ---------------------------------------------------------------------------------


@pytest.mark.parametrize("agents", [2, 4])
def test_sharing_trap(agents: int) -> None:
    """Half must play 0 and half 1: agents that share a policy stay at or below 2^(1-n), others reach 1."""
    payoff = np.zeros((2,) * agents)
    half = (0,) * (agents // 2)
    payoff[half + (1,) * (agents // 2)] = payoff[(1,) * (agents // 2) + half] = 1
    start = np.linspace(0.3, 0.6, agents)
    separate = MatrixGame(payoff, start, gradient_ascent(2.0)).play(250)
    shared = MatrixGame(payoff, (0.3,), gradient_ascent(2.0), share=True).play(250)
    bound = 2.0 ** (1 - agents)
    assert separate[-1] >= 0.95
    assert max(shared) <= bound + 1e-12
    assert shared[-1] == pytest.approx(bound, abs=1e-3)
    assert shared[0] < 0.95 * shared[-1]


# --- monotone improvement on random Markov games ------------------------------------------------------


@dataclass
class MarkovGame:
    """A random cooperative Markov game: two states, random payoffs, transitions and policies."""

    sizes: tuple[int, ...]
    seed: int
    gamma: float = 0.9
    states: int = 2
    policies: list[TabularPolicy] = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.actions = joint_actions(self.sizes)
        joint = self.actions.shape[1]
        self.reward = rng.normal(size=(self.states, joint))
        self.transition = rng.dirichlet(np.ones(self.states), size=(self.states, joint))
        self.visits = rng.dirichlet(np.ones(self.states)) * 0.9 + 0.1 / self.states
        state = np.repeat(np.arange(self.states), joint)
        self.policies = [
            TabularPolicy(
                rng.dirichlet(np.ones(n), size=self.states), np.tile(self.actions[i], self.states), state
            )
            for i, n in enumerate(self.sizes)
        ]

    def joint(self) -> Array:
        """(states, joint actions) probabilities."""
        tables = [policy.table() for policy in self.policies]
        return np.array([joint_probability([t[s] for t in tables], self.actions) for s in range(self.states)])

    def values(self) -> tuple[Array, Array]:
        """V (states,) and the advantage (states, joint actions), by solving Bellman's equation."""
        joint = self.joint()
        reward = (joint * self.reward).sum(1)
        transition = np.einsum("sa,sat->st", joint, self.transition)
        v = np.linalg.solve(np.eye(self.states) - self.gamma * transition, reward)
        return v, self.reward + self.gamma * self.transition @ v - v[:, None]

    def sweep(
        self,
        order: Order,
        drift: Drift = NO_DRIFT,
        shares: tuple[float, ...] = (VERTEX,),
        simultaneous: bool = False,
        key: tuple[int, ...] = (0,),
    ) -> Array:
        """(states,) what V gains by one exact sweep."""
        before, advantage = self.values()
        weights = torch.tensor((self.visits[:, None] * self.joint()).flatten())
        players = [Player(policy, drift, BestMixture(shares)) for policy in self.policies]
        sweep(
            dict(zip(names(len(players)), players, strict=True)),
            lambda log_factor: torch.tensor(advantage.flatten()),
            order=order,
            rows=JointRows.whole(advantage.size, weights=weights),
            key=key,
            simultaneous=simultaneous,
        )
        return self.values()[0] - before


SHAPES = [(2, 3)] * 36 + [(2, 2, 2)] * 12 + [(3, 2, 2)] * 6


@dataclass(frozen=True)
class Reward:
    """No drift at all, as a control: it pays for leaving the present policy."""

    def __call__(self, move: Move) -> Tensor:
        return -2 * (move.ratio - 1).abs()


def least_gains(drift: Drift, shares: tuple[float, ...]) -> list[float]:
    """The least gain of a state, for every order of every game."""
    return [
        MarkovGame(sizes, seed).sweep(FixedOrder(order), drift, shares).min()
        for seed, sizes in enumerate(SHAPES)
        for order in itertools.permutations(names(len(sizes)))
    ]


@pytest.mark.parametrize(
    "drift, shares", [(NO_DRIFT, (VERTEX,)), (CLIP, (0.05, 0.3, VERTEX))], ids=["argmax", "clip"]
)
def test_no_state_loses_by_a_sweep(drift: Drift, shares: tuple[float, ...]) -> None:
    """On 54 random games V falls in no state, whatever the order, and rises by no rounding error."""
    gains = least_gains(drift, shares)
    assert min(gains) >= -1e-9
    assert np.median(gains) > 1e-2


def test_states_lose_when_all_move_at_once() -> None:
    """Control: exact best responses at once lower V in some of 200 games."""
    least = [MarkovGame((2, 2, 2), s).sweep(RANDOM, simultaneous=True).min() for s in range(200)]
    assert sum(gain < -1e-2 for gain in least) >= 10


def test_states_lose_by_what_is_no_drift() -> None:
    """Control: what is negative away from the present policy lowers V in several games."""
    assert sum(gain < -1e-2 for gain in least_gains(Reward(), (0.3, VERTEX))) >= 20


def test_sweeps_end_in_an_equilibrium() -> None:
    """After 12 exact sweeps in random order no player can gain alone, in any state."""
    for seed in range(10):
        game = MarkovGame((3, 3), seed)
        initial = _best_gain_alone(game)
        for update in range(12):
            game.sweep(RANDOM, key=(seed, update))
        assert _best_gain_alone(game) <= 1e-6 < initial


def _best_gain_alone(game: MarkovGame) -> float:
    _, advantage = game.values()
    tables = [policy.table() for policy in game.policies]
    gain = 0.0
    for agent, state in itertools.product(range(len(game.sizes)), range(game.states)):
        for action in range(game.sizes[agent]):
            pure = np.eye(game.sizes[agent])[action]
            deviation = [pure if i == agent else t[state] for i, t in enumerate(tables)]
            gain = max(gain, float(joint_probability(deviation, game.actions) @ advantage[state]))
    return gain


# --- the compound ratio -------------------------------------------------------------------------------


@dataclass
class Spy:
    """Some epochs of ascent; keeps M and the step's order."""

    seen: list[tuple[MirrorStep, Tensor]]

    def maximise(self, step: MirrorStep) -> dict[str, Tensor]:
        self.seen.append((step, step.m.clone()))
        return Everywhere(num_epochs=3, minibatch_size=7).maximise(step)


@pytest.mark.parametrize("seed", range(5))
def test_compound_ratio_is_the_joint_ratio(seed: int) -> None:
    """exp(log_factor) equals π̄(a)/π(a) enumerated over joint actions, for any subset of absent agents.

    Four agents, two of which share a policy; M of each mover is the ratio of those before it times Â.
    """
    rng = np.random.default_rng(seed)
    sizes = (3, 2, 2, 4)
    actions = joint_actions(sizes)
    count = actions.shape[1]
    active = rng.random(actions.shape) < 0.8
    members = {"alone": [0], "pair": [1, 2], "last": [3]}
    policies = {
        name: TabularPolicy(
            rng.dirichlet(np.ones(sizes[who[0]])), actions[who], active=active[who], optimizer=adam(0.1)
        )
        for name, who in members.items()
    }
    before = {name: p.table()[0] for name, p in policies.items()}
    seen: list[tuple[MirrorStep, Tensor]] = []
    advantage = torch.tensor(rng.normal(size=count))
    result = sweep(
        {name: Player(p, ClipDrift(0.3), Spy(seen)) for name, p in policies.items()},
        lambda log_factor: advantage,
        order=RANDOM,
        rows=JointRows.whole(count),
        key=(seed, 0),
    )
    expected = np.ones(count)
    for name, (step, m) in zip(result.order, seen, strict=True):
        assert step.player.policy is policies[name]
        assert apart(m, expected * advantage.numpy()) < 1e-12
        after = policies[name].table()[0]
        for agent, column in itertools.product(members[name], range(count)):
            action = actions[agent, column]
            expected[column] *= after[action] / before[name][action] if active[agent, column] else 1
    assert sorted(result.order) == sorted(members)
    assert apart(result.log_factor.exp(), expected) < 1e-12
    assert apart(expected, np.ones(count)) > 0.1


# --- the order ----------------------------------------------------------------------------------------


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
