"""No state loses by a sweep: exact tabular HAMO on random cooperative Markov games.

Zhong et al. 2024, lemma 13 and theorem 14.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from haml_games import CLIP, NO_DRIFT, RANDOM, VERTEX, MarkovGame, names
from haml_policies import joint_probability
from torch import Tensor

from rllib_haml.haml import Drift, FixedOrder, Move

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
