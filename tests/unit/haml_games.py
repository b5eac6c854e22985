"""Small games, played exactly through the `sweep` that trains teams, for the tests of `haml`.

Joint actions are enumerated and weighted with their probability under the present policies, so that no
number here is noisy. Payoffs, values and optima are computed by numpy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from haml_policies import (
    Array,
    MakeOptimizer,
    TabularPolicy,
    gradient_ascent,
    joint_actions,
    joint_probability,
)
from torch import Tensor

from rllib_haml.haml import (
    ClipDrift,
    Drift,
    Everywhere,
    JointRows,
    MirrorStep,
    Neighbourhood,
    NoDrift,
    Order,
    Player,
    RandomOrder,
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

    def visitation(self, start: Array) -> Array:
        """(states,) discounted share of time that the present policies spend in each, from `start`."""
        transition = np.einsum("sa,sat->st", self.joint(), self.transition)
        return (1 - self.gamma) * np.linalg.solve(np.eye(self.states) - self.gamma * transition.T, start)

    def sweep(
        self,
        order: Order,
        drift: Drift = NO_DRIFT,
        neighbourhood: Neighbourhood | None = None,
        simultaneous: bool = False,
        key: tuple[int, ...] = (0,),
    ) -> Array:
        """(states,) what V gains by one sweep over all joint actions; exact argmax if not told otherwise."""
        before, advantage = self.values()
        weights = torch.tensor((self.visits[:, None] * self.joint()).flatten())
        players = [Player(policy, drift, neighbourhood or BestMixture()) for policy in self.policies]
        sweep(
            dict(zip(names(len(players)), players, strict=True)),
            lambda log_factor: torch.tensor(advantage.flatten()),
            order=order,
            rows=JointRows.whole(advantage.size, weights=weights),
            key=key,
            simultaneous=simultaneous,
        )
        return self.values()[0] - before
