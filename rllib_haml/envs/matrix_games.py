"""Games of one step, small enough to solve by hand: where learning together goes wrong.

Each shows one trap: what shared policies, simultaneous updates or greedy updates cannot do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from pettingzoo import ParallelEnv

from rllib_haml.nearest import did_you_mean


def sharing_trap(n: int = 2) -> np.ndarray:
    """Reward 1 iff one half of the n agents plays 0 and the other 1 (two ways); n even.

    One policy for all earns at most 2^(1-n), separate ones earn 1.

    Raises:
        ValueError: n is odd or not positive.
    """
    if n < 2 or n % 2:
        raise ValueError(f"the sharing trap needs an even number of agents, not n = {n}")
    payoff = np.zeros((2,) * n)
    half = (0,) * (n // 2), (1,) * (n // 2)
    payoff[half[0] + half[1]] = payoff[half[1] + half[0]] = 1.0
    return payoff


def penalty(k: float = -100.0) -> np.ndarray:
    """The penalty game: two best pairs of actions, and `k` if the agents choose different ones."""
    return np.array([[10.0, 0.0, k], [0.0, 2.0, 0.0], [k, 0.0, 10.0]])


MATRIX_GAMES: dict[str, Any] = {
    "sharing_trap": sharing_trap,
    # From policies that both favour action 0, best responding at once ends in (1, 1).
    "simultaneous_trap": lambda: np.array([[0.0, 2.0], [2.0, -1.0]]),
    # From (0, 0), best responding at once goes round in circles.
    "anti_coordination": lambda: np.array([[0.0, 1.0], [1.0, 0.0]]),
    # Sequential greedy updates may stop at 60: an equilibrium need not be the optimum.
    "ne_not_optimum": lambda: np.array([[60.0, 60.0], [0.0, 100.0]]),
    "climbing": lambda: np.array([[11.0, -30.0, 0.0], [-30.0, 7.0, 6.0], [0.0, 0.0, 5.0]]),
    "penalty": penalty,
}
"""Payoffs by name; entry [a_0, ..., a_{N-1}] is what each of the N agents receives."""


class OneStepGame(ParallelEnv):
    """Everyone acts once, receives the same reward, and the episode terminates.

    Observations are the constant [1.0].

    Args:
        name: The environment's name.
        action_spaces: One for each agent.
    """

    render_mode = None

    def __init__(self, name: str, action_spaces: Sequence[gym.Space]) -> None:
        self.metadata = {"name": name, "render_modes": []}
        self.possible_agents = [f"agent_{i}" for i in range(len(action_spaces))]
        self.agents: list[str] = []
        one = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.observation_spaces = dict.fromkeys(self.possible_agents, one)
        self.action_spaces = dict(zip(self.possible_agents, action_spaces, strict=True))

    def payoff(self, actions: list[Any]) -> float:
        """The reward of everyone; `actions` in the agents' order. Every game defines its own."""
        raise NotImplementedError(f"{type(self).__name__} defines no payoff")

    def observation_space(self, agent: str) -> gym.Space:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gym.Space:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
        self.agents = self.possible_agents.copy()
        return self._observe(), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[
        dict[str, np.ndarray],
        dict[str, float],
        dict[str, bool],
        dict[str, bool],
        dict[str, dict[str, Any]],
    ]:
        team = self.possible_agents
        reward = float(self.payoff([actions[agent] for agent in team]))
        self.agents = []
        return (
            self._observe(),
            dict.fromkeys(team, reward),
            dict.fromkeys(team, True),
            dict.fromkeys(team, False),
            {agent: {} for agent in team},
        )

    def get_state(self) -> dict[str, Any]:
        """Whether the episode is running is all there is."""
        return {"agents": self.agents.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        self.agents = list(state["agents"])

    def _observe(self) -> dict[str, np.ndarray]:
        return {agent: np.ones(1, np.float32) for agent in self.possible_agents}


class MatrixGame(OneStepGame):
    """A game with finitely many actions: the reward is an entry of an array.

    Attributes:
        payoffs: (n_0, ..., n_{N-1}), agent i has n_i actions.

    Raises:
        ValueError: `payoffs` are no such array.
    """

    def __init__(self, payoffs: Any) -> None:
        try:
            self.payoffs = np.asarray(payoffs, np.float64)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"payoffs={payoffs!r}: expected numbers in nested lists of equal lengths, such as "
                f"[[1, 0], [0, 2]]"
            ) from error
        super().__init__("matrix_game", [gym.spaces.Discrete(n) for n in self.payoffs.shape])

    def payoff(self, actions: list[Any]) -> float:
        return self.payoffs[tuple(int(action) for action in actions)]


class GaussianProduct(OneStepGame):
    """Two agents with one real action each: r = a_0 a_1.

    From means (-0.25, 0.25), both climbing at once end where the reward is worst; one after the
    other they agree on a sign and rise without bound.

    Args:
        bound: Actions lie in [-bound, bound]; infinite by default, so that Gaussian policies are
            neither squashed nor clipped.
    """

    def __init__(self, bound: float = float("inf")) -> None:
        space = gym.spaces.Box(-bound, bound, (1,), np.float32)
        super().__init__("differential_game", [space, space])

    def payoff(self, actions: list[Any]) -> float:
        first, second = (float(np.asarray(action).reshape(())) for action in actions)
        return first * second


def make_matrix_game(game: str | None = None, payoffs: Any = None, **kwargs: Any) -> MatrixGame:
    """The matrix game called `game`, or an own one.

    Args:
        game: A name in `MATRIX_GAMES`.
        payoffs: An own array (nested lists in YAML), in place of a name.
        **kwargs: `n` of the sharing trap, `k` of the penalty game.

    Raises:
        ValueError: There is no such game, or neither or both of `game` and `payoffs` are given.
        TypeError: The game has no such argument.
    """
    if (game is None) == (payoffs is None):
        raise ValueError(f"a matrix game needs either payoffs or game, one of: {', '.join(MATRIX_GAMES)}")
    if payoffs is None:
        return MatrixGame(_look_up(game, MATRIX_GAMES)(**kwargs))
    if kwargs:
        raise TypeError(f"a game given by its payoffs takes no {', '.join(kwargs)}")
    return MatrixGame(payoffs)


def make_differential_game(game: str = "gaussian_product", **kwargs: Any) -> OneStepGame:
    """The game with real actions called `game`: "gaussian_product" with its `bound`.

    Raises:
        ValueError: There is no such game.
    """
    return _look_up(game, {"gaussian_product": GaussianProduct})(**kwargs)


def _look_up(name: Any, games: dict[str, Any]) -> Any:
    if name in games:
        return games[name]
    raise ValueError(f"unknown game {name!r}. {did_you_mean(name, games)}There are: {', '.join(games)}")
