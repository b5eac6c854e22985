"""Random problems of one player, with their gradients and KL by numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from haml_policies import Array, TabularPolicy

from rllib_haml.haml import Drift, JointRows, KLBall, MirrorStep, NoDrift, Player, Policy

STATES, ACTIONS, STEPS = 3, 4, 60
NO_DRIFT = NoDrift()


def mirror_step(
    policy: Policy,
    m: Array,
    drift: Drift | None = None,
    entropy_coeff: float = 0.0,
    weights: Array | None = None,
) -> MirrorStep:
    """What the policy faces if Â is `m` and nobody has moved."""
    with torch.no_grad():
        before = policy.evaluate(slice(None))
    player = Player(policy, drift or NoDrift(), KLBall(0.01), entropy_coeff)
    rows = JointRows.whole(len(m), weights=None if weights is None else torch.tensor(weights))
    return MirrorStep(player, torch.ones(len(m), dtype=torch.float64), torch.tensor(m), before, rows, (0,))


@dataclass
class Problem:
    """A random table of probabilities, actions of two agents that share it, and M."""

    seed: int
    present: float = 0.8

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.probabilities = rng.dirichlet(np.ones(ACTIONS), size=STATES)
        self.state = rng.integers(STATES, size=STEPS)
        self.action = rng.integers(ACTIONS, size=(2, STEPS))
        self.active = rng.random((2, STEPS)) < self.present
        self.m, self.weights = rng.normal(size=STEPS), rng.random(STEPS)
        self.policy = TabularPolicy(self.probabilities, self.action, self.state, self.active)

    def share(self) -> Array:
        """(2, S) weight of each agent's row in a mean."""
        weight = self.active * self.weights
        return weight / weight.sum()

    def gain(self, table: Array) -> float:
        """E[(r - 1) M], one row at a time."""
        agents = np.arange(2)[:, None] * 0 + self.state
        ratio = table[agents, self.action] / self.probabilities[agents, self.action]
        return float((self.share() * (ratio - 1) * self.m).sum())

    def kl(self, table: Array) -> float:
        """Mean KL(present ‖ table)."""
        per_state = (self.probabilities * np.log(self.probabilities / table)).sum(1)
        return float((self.share() * per_state[self.state]).sum())

    def gradient(self) -> Array:
        """Of E[r M] over the logits: Σ w M (e_a - p)."""
        result = np.zeros((STATES, ACTIONS))
        for agent in range(2):
            for row, weight in enumerate(self.share()[agent]):
                state, pull = self.state[row], -self.probabilities[self.state[row]].copy()
                pull[self.action[agent, row]] += 1
                result[state] += weight * self.m[row] * pull
        return result.flatten()

    def fisher(self) -> Array:
        """Of the logits: in each state diag(p) - p pᵀ, times the state's weight."""
        result = np.zeros((STATES * ACTIONS,) * 2)
        for state, p in enumerate(self.probabilities):
            block = slice(state * ACTIONS, (state + 1) * ACTIONS)
            visits = self.share()[:, self.state == state].sum()
            result[block, block] = visits * (np.diag(p) - np.outer(p, p))
        return result

    def whole_step(self, delta: float, damping: float = 0.1) -> tuple[Array, float]:
        """√(2δ / xᵀHx) x over the logits, H x = g solved by numpy; and its linearised gain."""
        damped, g = self.fisher() + damping * np.eye(STATES * ACTIONS), self.gradient()
        x = np.linalg.solve(damped, g)
        whole = math.sqrt(2 * delta / (x @ damped @ x)) * x
        return whole.reshape(STATES, ACTIONS), float(g @ whole)

    def moved(self, change: Array) -> Array:
        """(states, actions) probabilities after a change of the logits."""
        weight = self.probabilities * np.exp(change)
        return weight / weight.sum(1, keepdims=True)

    def step(self, drift: Drift = NO_DRIFT, entropy_coeff: float = 0.0) -> MirrorStep:
        return mirror_step(self.policy, self.m, drift, entropy_coeff, self.weights)
