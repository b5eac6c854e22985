"""Drifts against enumeration, closed forms and the objectives that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from haml_policies import Array, TabularPolicy, apart
from torch import Tensor

from rllib_haml.haml import (
    Categorical,
    ClipDrift,
    Drift,
    FixedOrder,
    Gaussian,
    JointClipDrift,
    JointRows,
    KLDrift,
    MirrorStep,
    Move,
    NoDrift,
    Player,
    sweep,
)


def moved(ratio: Tensor, m: Tensor, place: float = 1.0) -> Move:
    """A move to `ratio`; half of M is the advantage, the rest the compound ratio."""
    none = torch.empty(*ratio.shape, 0)
    return Move(ratio, torch.full_like(m, 2.0), m / 2, Categorical(0), none, none, place)


@pytest.mark.parametrize("m", [-2.0, -0.3, 0.0, 0.3, 2.0])
def test_clip_drift(m: float) -> None:
    """Non-negative; 0 with no gradient at ratio 1; and r M − D = min(r M, clip(r) M), which is not r M."""
    ratio = np.linspace(0.2, 2.4, 45)
    drift = ClipDrift(0.25)(moved(torch.tensor(ratio)[None], torch.full((45,), m, dtype=torch.float64)))[0]
    clipped = np.minimum(ratio * m, np.clip(ratio, 0.75, 1.25) * m)
    assert apart(ratio * m - drift.numpy(), clipped) < 1e-12
    assert drift.min() >= 0
    assert (drift.max() > 0.01) == (m != 0)
    present = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    value = ClipDrift(0.25)(moved(present, torch.tensor([m], dtype=torch.float64)))
    value.sum().backward()
    assert present.grad is not None
    assert value.item() == present.grad.item() == 0


def test_no_drift() -> None:
    """0 of the ratio's shape."""
    assert torch.equal(NoDrift()(moved(torch.rand(2, 3), torch.rand(3))), torch.zeros(2, 3))


# --- A2PO's clips -------------------------------------------------------------------------------------


def joint_objective(ratio: Array, factor: Array, advantage: Array, epsilon: float) -> Array:
    """min(ℓ Â, clip(ℓ, 1 ± ε) Â), ℓ = ratio · factor, one number at a time."""
    result = np.zeros_like(ratio)
    for index in np.ndindex(ratio.shape):
        row = index[-1]
        joint = ratio[index] * factor[row]
        clipped = min(max(joint, 1 - epsilon), 1 + epsilon)
        result[index] = min(joint * advantage[row], clipped * advantage[row])
    return result


def random_move(seed: int, place: float = 1.0) -> tuple[Move, tuple[Array, Array, Array]]:
    rng = np.random.default_rng(seed)
    ratio, factor = rng.uniform(0.4, 1.8, (2, 200)), rng.uniform(0.7, 1.4, 200)
    arrays = ratio, factor, rng.normal(size=200)
    none = torch.empty(2, 200, 0)
    return Move(*map(torch.tensor, arrays), Categorical(0), none, none, place), arrays


def test_joint_clip_drift() -> None:
    """r M − D is A2PO's objective, with the clip of the joint ratio; which that of each ratio is not."""
    move, arrays = random_move(0)
    expected = joint_objective(*arrays, epsilon=0.3)
    for drift, equal in ((JointClipDrift(0.3), True), (ClipDrift(0.3), False)):
        found = move.ratio * move.m - drift(move)
        assert (apart(found, expected) < 1e-12) == equal
        assert drift(move).min() >= 0


@pytest.mark.parametrize("kind", [ClipDrift, JointClipDrift])
def test_clip_narrows_with_the_place(kind: type) -> None:
    """The k-th of n movers is clipped at ε [(1 − w) + w k / n]; the last at ε; all at ε if w = 0."""
    for k in (1, 2, 4):
        move, (ratio, factor, advantage) = random_move(k, place=k / 4)
        epsilon = 0.4 * ((1 - 0.75) + 0.75 * k / 4)
        found = move.ratio * move.m - kind(0.4, position_weight=0.75)(move)
        if kind is JointClipDrift:
            expected = joint_objective(ratio, factor, advantage, epsilon)
        else:
            expected = joint_objective(ratio, np.ones(200), factor * advantage, epsilon)
        assert apart(found, expected) < 1e-12
        assert (apart(kind(0.4)(move), kind(0.4, position_weight=0.75)(move)) < 1e-12) == (k == 4)


@pytest.mark.parametrize("weight", [-0.1, 1.5])
@pytest.mark.parametrize("kind", [ClipDrift, JointClipDrift])
def test_a_weight_beyond_its_range_is_refused(kind: type, weight: float) -> None:
    with pytest.raises(ValueError, match=f"position_weight={weight}"):
        kind(0.2, position_weight=weight)


class Faces:
    """Takes down what each mover faces, then sets the mover's policy."""

    def __init__(self, table: Array):
        self.table = table
        self.steps: list[MirrorStep] = []

    def maximise(self, step: MirrorStep) -> dict[str, Tensor]:
        self.steps.append(step)
        policy = step.player.policy
        assert isinstance(policy, TabularPolicy)
        policy.logits.data = torch.tensor(np.log(self.table))
        return {}


@pytest.mark.parametrize("compound_clip", [None, 0.1])
def test_sweep_bounds_the_compound_ratio_in_m_alone(compound_clip: float | None) -> None:
    """M sees it within 1 ± ε', `log_factor` the whole; places are k / n. Without a bound M is unbounded."""
    rng = np.random.default_rng(0)
    action, advantage = rng.integers(2, size=(3, 40)), rng.normal(size=40)
    faces = Faces(np.array([[0.8, 0.2]]))
    players = {
        name: Player(TabularPolicy(np.array([0.5, 0.5]), action[i]), NoDrift(), faces)
        for i, name in enumerate("abc")
    }
    result = sweep(
        players,
        lambda log_factor: torch.tensor(advantage),
        order=FixedOrder(("a", "b", "c")),
        rows=JointRows.whole(40),
        compound_clip=compound_clip,
    )
    compound = np.ones(40)
    for k, (step, taken) in enumerate(zip(faces.steps, action, strict=True)):
        seen = compound if compound_clip is None else np.clip(compound, 0.9, 1.1)
        assert apart(step.m, seen * advantage) < 1e-12
        assert step.place == pytest.approx((k + 1) / 3)
        compound = compound * np.where(taken == 0, 1.6, 0.4)
    assert apart(result.log_factor.exp(), compound) < 1e-12
    assert compound.max() > 1.1


# --- the KL drift -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_kl_drift(reverse: bool) -> None:
    """coeff · Σ p log(p/q) by numpy, in the direction asked for; not in the other."""
    rng = np.random.default_rng(0)
    present, candidate = (rng.dirichlet(np.ones(5), size=(2, 7)) for _ in range(2))
    move = Move(
        torch.ones(2, 7),
        torch.ones(7),
        torch.ones(7),
        Categorical(5),
        torch.tensor(np.log(present)),
        torch.tensor(np.log(candidate)),
    )
    p, q = (candidate, present) if reverse else (present, candidate)
    expected = 0.7 * (p * np.log(p / q)).sum(-1)
    assert apart(KLDrift(0.7, reverse)(move), expected) < 1e-12
    assert apart(KLDrift(0.7, not reverse)(move), expected) > 1e-3


@pytest.mark.parametrize("drift", [KLDrift(1.0), KLDrift(1.0, reverse=True)], ids=["forward", "reverse"])
def test_kl_drift_curves_like_fisher(drift: Drift) -> None:
    """At the present policy value and gradient are 0 and the Hessian is Fisher's: diag(σ⁻²), 2 for log σ."""
    present = torch.tensor([[[0.3, -1.0, 0.5, -0.2]]], dtype=torch.float64)

    def value(candidate: Tensor) -> Tensor:
        one = torch.ones(1, 1, dtype=torch.float64)
        return drift(Move(one, one[0], one[0], Gaussian(2), present, candidate)).sum()

    gradient = torch.autograd.functional.jacobian(value, present)
    hessian = torch.autograd.functional.hessian(value, present)
    assert apart(value(present), 0.0) < 1e-15
    assert isinstance(gradient, Tensor)
    assert isinstance(hessian, Tensor)
    assert gradient.abs().max() < 1e-15
    assert apart(hessian.view(4, 4), np.diag([np.exp(-1.0), np.exp(0.4), 2, 2])) < 1e-12
