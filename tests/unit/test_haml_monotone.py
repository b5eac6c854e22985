"""No state loses by a sweep: exact tabular HAMO on random cooperative Markov games.

Zhong et al. 2024, lemma 13 and theorem 14.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from haml_games import CLIP, NO_DRIFT, RANDOM, VERTEX, BestMixture, MarkovGame, names
from haml_policies import joint_probability
from torch import Tensor

from rllib_haml.haml import Drift, FixedOrder, KLBall, KLDrift, Move, Neighbourhood

SHAPES = [(2, 3)] * 140 + [(2, 2, 2)] * 40 + [(3, 2, 2)] * 20
SOME = (0.05, 0.3, VERTEX)


@dataclass(frozen=True)
class Reward:
    """No drift at all, as a control: it pays for leaving the present policy."""

    def __call__(self, move: Move) -> Tensor:
        return -2 * (move.ratio - 1).abs()


def least_gains(drift: Drift, neighbourhood: Neighbourhood, games: Sequence[int]) -> list[float]:
    """The least gain of a state, for every order of every game."""
    return [
        MarkovGame(SHAPES[seed], seed).sweep(FixedOrder(order), drift, neighbourhood).min()
        for seed in games
        for order in itertools.permutations(names(len(SHAPES[seed])))
    ]


@pytest.mark.parametrize(
    "drift, shares",
    [
        (NO_DRIFT, (VERTEX,)),
        (CLIP, SOME),
        (KLDrift(0.3), SOME),
        (KLDrift(0.3, reverse=True), SOME),
    ],
    ids=["argmax", "clip", "KL", "reverse KL"],
)
def test_no_state_loses_by_a_sweep(drift: Drift, shares: tuple[float, ...]) -> None:
    """On 200 random games V falls in no state, whatever the order, and rises by no rounding error."""
    gains = least_gains(drift, BestMixture(shares), range(len(SHAPES)))
    assert min(gains) >= -1e-9
    assert np.median(gains) > 1e-2


def returns_gained(neighbourhood: Neighbourhood, simultaneous: bool = False) -> list[float]:
    """What J gains by a sweep, for every order of every game, states weighted as the policies visit them."""
    found = []
    for seed, sizes in enumerate(SHAPES):
        for order in itertools.permutations(names(len(sizes))):
            game = MarkovGame(sizes, seed)
            start = np.full(game.states, 1 / game.states)
            game.visits = game.visitation(start)
            found.append(start @ game.sweep(FixedOrder(order), NO_DRIFT, neighbourhood, simultaneous))
            if simultaneous:
                break
    return found


def test_trust_region_does_not_lower_the_return() -> None:
    """HATRPO's own steps: on 200 random games, in every order, J rises."""
    assert min(returns_gained(KLBall(0.05))) > 0


def test_a_wide_trust_region_at_once_lowers_the_return() -> None:
    """Control: steps of 2 nats, all at once, lower J in some games."""
    assert sum(gain < -1e-2 for gain in returns_gained(KLBall(2.0), simultaneous=True)) >= 3


def test_states_lose_when_all_move_at_once() -> None:
    """Control: exact best responses at once lower V in some of 200 games."""
    least = [MarkovGame((2, 2, 2), s).sweep(RANDOM, simultaneous=True).min() for s in range(200)]
    assert sum(gain < -1e-2 for gain in least) >= 10


def test_states_lose_by_what_is_no_drift() -> None:
    """Control: what is negative away from the present policy lowers V in several games."""
    assert (
        sum(gain < -1e-2 for gain in least_gains(Reward(), BestMixture((0.3, VERTEX)), range(100, 160))) >= 20
    )


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
