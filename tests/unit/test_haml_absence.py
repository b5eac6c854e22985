"""Where nobody acted there is nothing to learn: no momentum and no weight decay moves a policy there."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from haml_policies import Array, Ranks, TabularPolicy, apart
from haml_trust_region import mirror_step
from test_together import STEPS as FEW_STEPS
from test_together import adapters, together

from rllib_haml.haml import Everywhere, FixedOrder, JointRows, MirrorStep, NoDrift, Player, sweep
from rllib_haml.haml.neighbourhood import descend

STEPS, SIZE = 30, 5
# Two agents that share a table: of six minibatches most hold no row of theirs.
ACTED = np.zeros((2, STEPS), bool)
ACTED[0, [3, 4]], ACTED[1, [4, 17]] = True, True


def decaying(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.1, weight_decay=0.5)


def table(rows: Array, weights: Array | None = None) -> TabularPolicy:
    rng = np.random.default_rng(0)
    probabilities, action = rng.dirichlet(np.ones(3), size=2), rng.integers(3, size=(2, STEPS))
    state = rng.integers(2, size=STEPS)
    return TabularPolicy(probabilities, action[:, rows], state[rows], ACTED[:, rows], decaying)


ADVANTAGE = np.random.default_rng(1).normal(size=STEPS)
EPOCHS = Everywhere(num_epochs=3, minibatch_size=SIZE, grad_clip=1.0)


def step_of(policy: TabularPolicy, joint: JointRows) -> MirrorStep:
    return replace(mirror_step(policy, ADVANTAGE[joint.index.numpy()]), rows=joint)


def by_hand(skips: bool) -> tuple[Array, int]:
    """The same epochs, an optimizer step for each minibatch, or for those alone in which somebody acted."""
    policy, steps = table(np.arange(STEPS)), 0
    step = step_of(policy, JointRows.whole(STEPS))
    for epoch in range(3):
        for rows in step.minibatches(SIZE, epoch):
            if skips and not ACTED[:, rows].any():
                continue
            (gradient,) = torch.autograd.grad(-step.objective(rows), [policy.logits])
            norm = gradient.norm()
            policy.logits.grad = gradient * (1.0 / (norm + 1e-6)).clamp(max=1)
            policy.optimizer.step()
            steps += 1
    return policy.logits.detach().numpy(), steps


def test_a_minibatch_without_a_row_of_a_policy_does_not_move_it() -> None:
    policy = table(np.arange(STEPS))
    report = EPOCHS.maximise(step_of(policy, JointRows.whole(STEPS)))
    expected, steps = by_hand(skips=True)
    assert apart(policy.logits, expected) < 1e-12
    assert policy.optimizer.state[policy.logits]["step"] == steps < 3 * STEPS // SIZE
    assert report["grad_norm"] > 0, "of a minibatch with a row"
    assert apart(by_hand(skips=False)[0], expected) > 1e-2, "control: momentum and weight decay"


@pytest.mark.parametrize("second", [[4], [17], range(5, STEPS), []], ids=str)
def test_learners_agree_on_who_stays(second: Any) -> None:
    """Also where one of them has no row of the policy, in this minibatch or in any, or no row at all."""
    ranks, mine = Ranks(2), np.isin(np.arange(STEPS), list(second))
    parts = [np.flatnonzero(~mine), np.flatnonzero(mine)]

    def work(rank: int) -> Array:
        rows = torch.tensor(parts[rank])
        policy = table(parts[rank])
        EPOCHS.maximise(step_of(policy, JointRows(rows, STEPS, all_reduce=ranks.all_reduce(rank))))
        return policy.logits.detach().numpy()

    first, other = ranks.run(work)
    assert np.array_equal(first, other)
    assert apart(first, by_hand(skips=True)[0]) < 1e-9


def test_rows_without_weight_do_not_count() -> None:
    policy = table(np.arange(STEPS))
    weights = torch.ones(STEPS, dtype=torch.float64)
    weights[[3, 4]] = 0.0
    step = step_of(policy, JointRows.whole(STEPS, weights=weights))
    for own, weight in step.bearing(torch.tensor([3, 4, 5])):
        assert own == [policy.logits]
        assert weight == 0
    assert step.bearing(torch.tensor([17, 4]))[0][1] == 1


def test_without_weight_nothing_steps() -> None:
    """Parameters one by one; a part on which a row bears moves, and so does what nothing is said of."""
    one, two, three = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = decaying([one, two, three])

    def move(bearing: Any) -> list[bool]:
        before = [p.detach().clone() for p in (one, two, three)]
        loss = (one.sum() + two.sum() + three.sum()).square()
        descend(loss, [one, two, three], optimizer, None, JointRows.whole(1), bearing)
        return [not torch.equal(p, b) for p, b in zip((one, two, three), before, strict=True)]

    some, none = torch.tensor(0.5), torch.tensor(0.0)
    assert move([]) == [True, True, True]
    assert move([([one], some), ([two], none)]) == [True, False, True]
    assert move([([one, two], none), ([three], none)]) == [False, False, False]
    assert optimizer.state[two]["step"] == 1


def absent(policy: Any, rows: Any) -> None:
    policy.active = policy.active.clone()
    policy.active[:, rows] = False


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_of_adapters_that_move_at_once_each_moves_by_its_own_rows(network: str) -> None:
    """The backbone beneath them moves by everyone's; what stays keeps its moments, too."""
    members = adapters("discrete", (1, 2), network)
    backbone = members["agent_0"].module.backbone
    for name, member in members.items():
        member.module.train_backbone = True
        member.optimizer = decaying(member.parameters())
        absent(member, slice(None) if name == "agent_1" else slice(0, 0))
    below = decaying(list(backbone.parameters()))
    policy = type(together(members))(
        members, {"backbone": below, **{name: m.optimizer for name, m in members.items()}}
    )
    warm = {name: copy.deepcopy(m.module.state_dict()) for name, m in members.items()}
    before = copy.deepcopy(backbone.state_dict())
    for name, member in members.items():  # gives them momentum
        for p in member.parameters():
            p.grad = torch.ones_like(p)
        member.optimizer.step()
        member.module.load_state_dict(warm[name])
    player = Player(policy, NoDrift(), Everywhere(num_epochs=2))
    sweep(
        {"all": player},
        lambda log_factor: torch.ones(FEW_STEPS).double(),
        order=FixedOrder(("all",)),
        rows=JointRows.whole(FEW_STEPS),
    )

    def moved(module: Any, start: dict[str, Any]) -> bool:
        return any(not torch.equal(value, start[key]) for key, value in module.state_dict().items())

    assert moved(backbone, before)
    assert {name for name, m in members.items() if moved(m.module, warm[name])} == {"agent_0"}
    steps = [m.optimizer.state[m.parameters()[0]]["step"] for m in members.values()]
    assert steps == [3, 1]
