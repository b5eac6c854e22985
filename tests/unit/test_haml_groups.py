"""Agents of one policy as one player: its surrogate is the group's joint one to first order, no further."""

from __future__ import annotations

import numpy as np
import torch
from haml_policies import TabularPolicy, joint_actions, joint_probability

from rllib_haml.haml import Everywhere, JointRows, MirrorStep, NoDrift, Player

PAYOFF = np.array([[3.0, -1.0, 0.5], [2.0, 0.0, -2.0], [1.0, 4.0, 1.5]])


def expected_payoff(table: np.ndarray) -> float:
    """Of two agents who both follow `table`, by a loop over joint actions."""
    return sum(table[i] * table[j] * PAYOFF[i, j] for i in range(len(table)) for j in range(len(table)))


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def faced(table: np.ndarray) -> tuple[TabularPolicy, MirrorStep]:
    """The step of a group of two in the exact game: every joint action, as likely as it is."""
    actions = joint_actions((3, 3))
    policy = TabularPolicy(table, actions)
    player = Player(policy, NoDrift(), Everywhere(num_epochs=1, minibatch_size=None, grad_clip=None))
    weights = torch.tensor(joint_probability([table, table], actions))
    advantage = torch.tensor(PAYOFF[tuple(actions)])
    with torch.no_grad():
        before = policy.evaluate(slice(None))
    rows = JointRows.whole(actions.shape[1], weights=weights)
    return policy, MirrorStep(player, torch.ones_like(advantage), advantage, before, rows, (0,))


def test_its_gradient_is_that_of_the_groups_return_for_each_member() -> None:
    logits, step = np.array([0.3, -0.4, 0.1]), 1e-6
    policy, mirror = faced(softmax(logits))
    mirror.objective().backward()
    by_difference = [
        (expected_payoff(softmax(logits + step * unit)) - expected_payoff(softmax(logits - step * unit)))
        / (2 * step)
        for unit in np.eye(3)
    ]
    assert policy.logits.grad is not None
    np.testing.assert_allclose(2 * policy.logits.grad[0], by_difference, rtol=1e-6, atol=1e-8)


def test_a_long_step_gains_something_else_than_the_surrogate_says() -> None:
    """Twice the surrogate's gain against the group's: the difference falls with the square of the step."""
    logits, towards = np.array([0.3, -0.4, 0.1]), np.array([1.0, -0.5, -0.5])
    policy, mirror = faced(softmax(logits))

    def gap(length: float) -> float:
        start, end = expected_payoff(softmax(logits)), expected_payoff(softmax(logits + length * towards))
        with torch.no_grad():
            policy.logits.copy_(torch.tensor(logits + length * towards)[None])
            return abs(2 * (float(mirror.objective()) - start) - (end - start))

    assert gap(1.0) > 0.05
    assert gap(1e-2) / gap(1e-3) > 90
