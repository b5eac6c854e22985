"""The games pay what the theory says, and are what the sampler expects."""

from __future__ import annotations

import numpy as np
import pytest

from rllib_haml.envs.matrix_games import (
    MATRIX_GAMES,
    GaussianProduct,
    make_differential_game,
    make_matrix_game,
)
from rllib_haml.sampling.make_vector import make_vector_team_env


def play(env, *actions):
    env.reset()
    return env.step(dict(zip(env.possible_agents, actions, strict=True)))[1]["agent_0"]


@pytest.mark.parametrize("n", [2, 4, 6])
def test_sharing_trap(n):
    game = make_matrix_game("sharing_trap", n=n)
    payoffs = [game.payoffs[a] for a in np.ndindex(game.payoffs.shape)]
    assert len(payoffs) == 2**n
    assert sum(payoffs) == 2
    assert max(payoffs) == 1
    # The best that one policy for all can earn: at p = 1/2.
    shared = [
        sum(game.payoffs[a] * p ** sum(a) * (1 - p) ** (n - sum(a)) for a in np.ndindex(game.payoffs.shape))
        for p in np.linspace(0, 1, 101)
    ]
    assert max(shared) == pytest.approx(2.0 ** (1 - n))


@pytest.mark.parametrize("n", [3, 0])
def test_sharing_trap_needs_an_even_team(n):
    with pytest.raises(ValueError, match="even"):
        make_matrix_game("sharing_trap", n=n)


def test_simultaneous_trap():
    game = make_matrix_game("simultaneous_trap")
    p = 0.7  # both play 0 with this probability
    policy = np.array([p, 1 - p])
    values = game.payoffs @ policy
    assert values.argmax() == 1  # each alone would switch ...
    assert play(game, 1, 1) == game.payoffs.min() == -1  # ... and together they lose
    assert game.payoffs[1].max() == 2  # the second, knowing of the first's switch, does not
    assert policy @ game.payoffs @ policy == pytest.approx(0.75)


def test_the_other_matrix_games():
    assert play(make_matrix_game("anti_coordination"), 0, 1) == 1
    assert play(make_matrix_game("anti_coordination"), 1, 1) == 0
    trap = make_matrix_game("ne_not_optimum").payoffs
    assert trap[0, 1] == trap[0].max() == trap[0, 0]  # from (0, 0) nobody gains alone
    assert trap[1, 0] < trap[0, 0] < trap.max()
    climbing = make_matrix_game("climbing").payoffs
    assert climbing.max() == climbing[0, 0] == 11
    assert climbing[0, 1] == climbing[1, 0] == climbing.min()
    assert make_matrix_game("penalty", k=-7).payoffs[0, 2] == -7


def test_gaussian_product():
    game = make_differential_game("gaussian_product")
    assert play(game, np.array([-0.25]), np.array([0.25])) == -0.0625
    assert not np.isfinite(game.action_space("agent_0").high).any()
    assert GaussianProduct(bound=2.0).action_space("agent_1").high.tolist() == [2.0]


def test_own_payoffs_of_any_shape():
    payoffs = np.arange(24.0).reshape(2, 3, 4)
    game = make_matrix_game(payoffs=payoffs.tolist())
    assert [game.action_space(a).n for a in game.possible_agents] == [2, 3, 4]
    assert play(game, 1, 2, 3) == 23


@pytest.mark.parametrize(
    "make, arguments, words",
    [
        (make_matrix_game, {}, "payoffs or game.*climbing"),
        (make_matrix_game, {"game": "climbing", "payoffs": [[1]]}, "either"),
        (make_matrix_game, {"game": "climing"}, "Did you mean 'climbing'"),
        (make_differential_game, {"game": "gausian"}, "gaussian_product"),
    ],
)
def test_wrong_arguments(make, arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)


@pytest.mark.parametrize("game", MATRIX_GAMES)
def test_one_step_terminates_and_everyone_is_paid_alike(game):
    vec = make_vector_team_env(lambda: make_matrix_game(game), 3)
    out = vec.reset(range(3), [0, 1, 2])
    assert all((out.obs[a] == 1).all() and out.obs[a].shape == (3, 1) for a in vec.agents)
    out = vec.step({agent: np.array([0, 1, 0]) for agent in vec.agents})
    assert out.terminated.all()
    assert not out.truncated.any()
    assert (out.reward == out.reward[:, :1]).all()
    payoffs = vec._teams[0].env.payoffs
    assert out.reward[1, 0] == payoffs[(1,) * payoffs.ndim]


def test_state_says_whether_the_episode_runs():
    vec, other = (make_vector_team_env(lambda: make_matrix_game("penalty"), 2) for _ in range(2))
    vec.reset([0, 1], [None] * 2)
    act = {agent: np.zeros(2, int) for agent in vec.agents}
    running = vec.get_state()
    vec.step(act)
    ended = vec.get_state()
    assert other.set_state(ended).terminated.all()
    assert not other.step(act).reward.any()
    assert not other.set_state(running).terminated.any()
    assert (other.step(act).reward == 10).all()
