"""The KL ball's search, against linear algebra by numpy and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from haml_policies import Network, NetworkPolicy, TabularPolicy, apart
from haml_trust_region import STEPS, Problem, mirror_step
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from rllib_haml.haml import ClipDrift, KLBall, NoDrift
from rllib_haml.haml.kl_ball import conjugate_gradient


@pytest.mark.parametrize("seed", range(4))
def test_step_equals_linear_algebra(seed: int) -> None:
    """√(2δ / xᵀHx) x with H x = g solved by numpy, from the closed forms of g and Fisher's matrix.

    The gain, KL and gradient's norm that are reported are those of the probabilities before and after.
    """
    problem, delta = Problem(seed), 1e-4
    report = KLBall(delta, cg_iterations=30).maximise(problem.step())
    whole, slope = problem.whole_step(delta)
    assert apart(problem.policy.logits, np.log(problem.probabilities) + whole) < 1e-9
    table = problem.policy.table()
    assert (report["line_search_accepted"], report["backtracks"]) == (1, 0)
    assert apart(report["objective_gain"], problem.gain(table)) < 1e-12
    assert apart(report["kl"], problem.kl(table)) < 1e-12
    assert apart(report["grad_norm"], np.linalg.norm(problem.gradient())) < 1e-12
    assert apart(report["expected_gain"], slope) < 1e-12
    assert apart(report["policy_loss"], -(problem.share() * problem.m).sum() - problem.gain(table)) < 1e-12


def test_undamped_or_unsolved_step_differs() -> None:
    """Control: without the damping, or along the gradient itself, the step ends elsewhere."""
    logits = []
    for ball in (KLBall(1e-4, 30), KLBall(1e-4, 30, cg_damping=1e-6), KLBall(1e-4, 1)):
        problem = Problem(0)
        ball.maximise(problem.step())
        logits.append(problem.policy.logits.detach().clone())
    assert min(apart(logits[0], other) for other in logits[1:]) > 1e-3


@pytest.mark.parametrize("size", [1, 5, 12])
def test_conjugate_gradient_equals_solve(size: int) -> None:
    """In `size` steps and, without trouble, in many more; one step less leaves an error."""
    rng = np.random.default_rng(size)
    root, b = rng.normal(size=(size, size)), rng.normal(size=size)
    a = root @ root.T + 0.5 * np.eye(size)
    exact = np.linalg.solve(a, b)

    def solve(steps: int, dtype: torch.dtype = torch.float64) -> Tensor:
        matrix = torch.tensor(a, dtype=dtype)
        return conjugate_gradient(lambda v: matrix @ v, torch.tensor(b, dtype=dtype), steps)

    assert apart(solve(size + 2), exact) < 1e-8
    assert apart(solve(500), exact) < 1e-8
    assert apart(solve(500, torch.float32).double(), exact) < 1e-3
    assert apart(solve(size - 1), exact) > 1e-4
    assert conjugate_gradient(lambda v: v, torch.zeros(size), 5).tolist() == [0.0] * size


def textbook(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """Hestenes and Stiefel as it is printed."""
    x, residual, direction = np.zeros_like(b), b, b
    for _ in range(steps):
        length = residual @ residual / (direction @ a @ direction)
        x, following = x + length * direction, residual - length * (a @ direction)
        direction = following + (following @ following) / (residual @ residual) * direction
        residual = following
    return x


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_sums_is_all_but_forgotten(seed: int) -> None:
    """The same equations with the unknowns in another order; a few eigenvalues, as a Fisher matrix has."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(40, 40)))
    a = (basis * np.r_[np.full(32, 0.1), np.geomspace(0.2, 400, 8)]) @ basis.T
    a, b, other = (a + a.T) / 2, rng.normal(size=40), rng.permutation(40)

    def apart_by(solve: Callable[..., np.ndarray]) -> float:
        plain, permuted = solve(a, b, 10), solve(a[other][:, other], b[other], 10)
        return float(np.linalg.norm(plain[other] - permuted) / np.linalg.norm(plain))

    def ours(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
        return conjugate_gradient(lambda v: torch.tensor(a) @ v, torch.tensor(b), steps).numpy()

    assert apart_by(ours) < 1e-12
    assert apart_by(textbook) > 1e-9, "control: the residuals lose their orthogonality"


# --- the line search ----------------------------------------------------------------------------------


def bits(policy: TabularPolicy) -> bytes:
    return policy.logits.detach().numpy().tobytes()


@pytest.mark.parametrize("delta", [0.05, 0.5, 3.0])
def test_backtracking_takes_the_first_that_passes(delta: float) -> None:
    """Of all lengths αʲ, by numpy: the first within the ball that gains more than half its expectation."""
    tried = set()
    for seed in range(20):
        problem = Problem(seed)
        report = KLBall(delta, cg_iterations=30, max_backtracks=10).maximise(problem.step())
        whole, slope = problem.whole_step(delta)
        tables = [problem.moved(0.8**j * whole) for j in range(10)]
        passing = [
            (j, table)
            for j, table in enumerate(tables)
            if problem.kl(table) <= delta and problem.gain(table) > 0.5 * 0.8**j * slope
        ]
        if passing:
            j, table = passing[0]
            assert report["line_search_accepted"] == 1
            assert report["backtracks"] == j
            assert apart(problem.policy.table(), table) < 1e-9
        else:
            assert report["line_search_accepted"] == 0
        tried.add(int(report["backtracks"]))
    assert len(tried) > 1 or delta == 0.05


def concave() -> KLBall:
    """Its damping makes the curvature negative, which no setting may."""
    ball = KLBall(0.01, cg_iterations=1)
    object.__setattr__(ball, "cg_damping", -0.2)
    return ball


@pytest.mark.parametrize(
    "ball", [KLBall(0.01, accept_ratio=50.0), concave()], ids=["demands too much", "wrong curvature"]
)
def test_a_failed_search_restores_every_bit(ball: KLBall) -> None:
    """Of weights, negative zeros among them; reported as not accepted, with no gain and no KL."""
    problem = Problem(1)
    with torch.no_grad():
        problem.policy.logits[0, 1] = -0.0
    before = bits(problem.policy)
    report = ball.maximise(problem.step())
    assert bits(problem.policy) == before
    assert report["line_search_accepted"] == report["objective_gain"] == report["kl"] == 0
    assert report["backtracks"] == (10 if ball.accept_ratio == 50.0 else 0)


def test_an_easier_search_moves() -> None:
    """Control: with the ratio that is usual, the same problem's weights change."""
    problem = Problem(1)
    before = bits(problem.policy)
    assert KLBall(0.01).maximise(problem.step())["line_search_accepted"] == 1
    assert bits(problem.policy) != before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nothing_moves_without_a_gradient(dtype: torch.dtype) -> None:
    """M = 0 everywhere, or nobody active: no NaN, nothing tried, every figure 0."""
    for m, present in ((np.zeros(STEPS), 0.8), (np.ones(STEPS), 0.0)):
        problem = Problem(2, present)
        problem.policy.logits.data = problem.policy.logits.data.to(dtype)
        before = bits(problem.policy)
        report = KLBall(0.01).maximise(mirror_step(problem.policy, m))
        assert bits(problem.policy) == before
        assert {name: value.item() for name, value in report.items()} == dict.fromkeys(report, 0.0)


def test_absent_rows_count_nowhere() -> None:
    """Neither in the gradient nor in the KL: the step is that of the other rows alone."""
    rng = np.random.default_rng(0)
    obs, action = torch.tensor(rng.normal(size=(50, 5))), torch.tensor(rng.normal(size=(50, 2)))
    m, active = rng.normal(size=50), torch.tensor(rng.random(50) < 0.6)
    torch.manual_seed(0)
    start = Network(5, 2, gaussian=True)
    weights = []
    for present_only, everyone in ((False, False), (True, False), (False, True)):
        network = Network(5, 2, gaussian=True)
        network.load_state_dict(start.state_dict())
        rows = active if present_only else torch.ones(50, dtype=torch.bool)
        policy = NetworkPolicy(network, obs[rows], action[rows], None if present_only or everyone else active)
        assert KLBall(0.01).maximise(mirror_step(policy, m[rows.numpy()]))["line_search_accepted"] == 1
        weights.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    assert apart(weights[0], weights[1]) < 1e-9
    assert apart(weights[0], weights[2]) > 1e-3


def test_entropy_bonus_and_drift_are_part_of_the_objective() -> None:
    """With M = 0 a bonus alone raises the entropy; a drift lowers what the search counts as a gain."""
    problem = Problem(3)
    problem.m[:] = 0

    def entropy() -> float:
        table = problem.policy.table()
        per_state = -(table * np.log(table)).sum(1)
        return float((problem.share() * per_state[problem.state]).sum())

    before = entropy()
    report = KLBall(0.01).maximise(problem.step(entropy_coeff=0.5))
    assert apart(report["objective_gain"], 0.5 * (entropy() - before)) < 1e-12
    assert report["objective_gain"] > 1e-3
    free, clipped = (
        KLBall(0.05).maximise(Problem(4).step(drift))["objective_gain"]
        for drift in (NoDrift(), ClipDrift(0.05))
    )
    assert clipped < free


@pytest.mark.parametrize(
    "wrong",
    [
        {"radius": 0.0},
        {"radius": -1.0},
        {"backtrack_coeff": 1.0},
        {"cg_iterations": 0},
        {"max_backtracks": 0},
        {"cg_damping": -0.1},
        {"accept_ratio": -1},
    ],
    ids=str,
)
def test_a_ball_without_room_is_refused(wrong: dict[str, float]) -> None:
    """It would leave every policy where it is, without a word."""
    with pytest.raises(ValueError, match="=".join(map(str, *wrong.items()))):
        KLBall(**{"radius": 0.01} | wrong)  # type: ignore[arg-type]


# --- many problems ------------------------------------------------------------------------------------


def test_a_thousand_searches_stay_in_the_ball() -> None:
    """No step leaves it, by numpy's own KL; at least 90 % are accepted; the median KL is at least 0.3 δ.

    Control: the whole steps, unchecked, are outside in many of them.
    """
    shares, outside = [], 0
    for seed in range(1000):
        problem, delta, damping = Problem(seed), (1e-3, 0.01, 0.1, 0.5)[seed % 4], (0.1, 0.01)[seed // 4 % 2]
        report = KLBall(delta, cg_damping=damping).maximise(problem.step())
        table = problem.policy.table()
        assert problem.kl(table) <= delta * (1 + 1e-9)
        outside += problem.kl(problem.moved(problem.whole_step(delta, damping)[0])) > delta
        if report["line_search_accepted"]:
            assert problem.gain(table) > 0
            shares.append(problem.kl(table) / delta)
    assert len(shares) >= 900
    assert np.median(shares) >= 0.3
    assert outside >= 50


@pytest.mark.parametrize("gaussian", [True, False], ids=["Gaussian", "masked categorical"])
def test_networks_stay_in_the_ball(gaussian: bool) -> None:
    """The same of 50 networks, by torch's own KL of the distributions before and after."""
    shares, delta = [], 0.01
    for seed in range(50):
        torch.manual_seed(seed)
        network, obs = Network(5, 3, gaussian), torch.randn(64, 5, dtype=torch.float64)
        mask = None if gaussian else torch.rand(64, 3) < 0.7
        if mask is not None:
            mask[:, 0] = True
        action = (
            torch.randn(64, 3, dtype=torch.float64) if gaussian else torch.zeros(64, 1, dtype=torch.int64)
        )
        policy = NetworkPolicy(network, obs, action, action_mask=mask)
        before = distribution(network, obs, mask)
        report = KLBall(delta).maximise(mirror_step(policy, torch.randn(64, dtype=torch.float64).numpy()))
        kl = kl_divergence(before, distribution(network, obs, mask)).view(64, -1).sum(1).mean().item()
        assert kl <= delta * (1 + 1e-9)
        if report["line_search_accepted"]:
            assert apart(report["kl"], kl) < 1e-9
            shares.append(kl / delta)
    assert len(shares) >= 45
    assert np.median(shares) >= 0.3


@torch.no_grad()
def distribution(network: Network, obs: Tensor, mask: Tensor | None) -> Categorical | Normal:
    output = network(obs)
    if mask is None:
        return Normal(output, network.std())
    return Categorical(logits=torch.where(mask, output, -1e10))


# --- without damping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.0, 1e-12])
@pytest.mark.parametrize("seed", range(5))
def test_without_damping_a_singular_fisher_matrix_is_safe(seed: int, damping: float) -> None:
    """A table's always is: a constant added to a state's logits changes no probability. The step is that of
    numpy's pseudoinverse, without any such constant."""
    problem = Problem(seed)
    assert np.linalg.matrix_rank(problem.fisher()) < problem.gradient().size
    report = KLBall(1e-4, cg_iterations=30, cg_damping=damping).maximise(problem.step())
    assert report["line_search_accepted"] == 1
    x = np.linalg.pinv(problem.fisher(), rcond=1e-9) @ problem.gradient()
    whole = np.sqrt(2e-4 / (x @ problem.fisher() @ x)) * x
    change = problem.policy.logits.detach().numpy() - np.log(problem.probabilities)
    assert apart(change.flatten(), 0.8 ** float(report["backtracks"]) * whole) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [0, 1, 4])
def test_conjugate_gradients_where_the_matrix_is_singular(size: int, dtype: torch.dtype) -> None:
    """Of rank `size` in 8 dimensions: the solution in its range, and nothing of what lies outside it."""
    rng = np.random.default_rng(size)
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    kept, values = basis[:, :size], rng.uniform(0.5, 2.0, size)
    matrix = torch.tensor(kept * values @ kept.T, dtype=dtype)
    for outside in (0.0, 1e-6):
        b = kept @ np.ones(size) + outside * basis[:, -1]
        x = conjugate_gradient(lambda v: matrix @ v, torch.tensor(b, dtype=dtype), 20)
        # One residual outside the range is the most that the last direction can hold of it.
        tolerance = 1e-9 if dtype == torch.float64 and not outside else 1e-3
        assert apart(x, kept @ (np.ones(size) / values)) < tolerance
    if size:
        b = torch.tensor(kept @ np.ones(size) + 1e-6 * basis[:, -1], dtype=dtype)
        damped = torch.linalg.solve(matrix + 1e-12 * torch.eye(8, dtype=dtype), b)
        assert not apart(damped, kept @ (np.ones(size) / values)) < 1, "control"


@pytest.mark.parametrize("damping", [float("nan"), float("inf"), "0.1", None])
def test_damping_is_a_number(damping: Any) -> None:
    with pytest.raises(ValueError, match=f"cg_damping={damping!r}; expected a number"):
        KLBall(0.01, cg_damping=damping)
