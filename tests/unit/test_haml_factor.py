"""The compound ratio, and the bound that A2PO puts on it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from haml_games import RANDOM
from haml_policies import TabularPolicy, adam, apart, joint_actions
from torch import Tensor

from rllib_haml.haml import ClipDrift, Everywhere, JointRows, MirrorStep, Player, sweep


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
