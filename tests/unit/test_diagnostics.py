"""What an operator reads of an update, against plain float64 loops over active rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_haml.haml import Categorical, ClipDrift, Evaluation, Everywhere, JointRows, MirrorStep, Player
from rllib_haml.learners import diagnostics

K, R, N = 2, 30, 4
CLIP = 0.2


def evaluation(logits: Tensor, action: Tensor) -> Evaluation:
    logp = logits.log_softmax(-1)
    log_prob = logp.gather(-1, action[..., None]).squeeze(-1)
    return Evaluation(log_prob, -(logp.exp() * logp).sum(-1), logits)


def evaluations() -> tuple[Evaluation, Evaluation, Tensor]:
    """Before and after a move of two agents that choose among four, and where they acted."""
    generator = torch.Generator().manual_seed(0)
    logits, change = torch.randn(2, K, R, N, generator=generator, dtype=torch.float64)
    action = torch.randint(N, (K, R), generator=generator)
    active = torch.rand(K, R, generator=generator) < 0.7
    return evaluation(logits, action), evaluation(logits + 0.3 * change, action), active


def mirror_step(before: Evaluation, active: Tensor) -> MirrorStep:
    policy: Any = SimpleNamespace(active=active, family=Categorical(N))
    generator = torch.Generator().manual_seed(1)
    factor = 0.5 + torch.rand(R, generator=generator, dtype=torch.float64)
    advantage = torch.randn(R, generator=generator, dtype=torch.float64)
    player = Player(policy, ClipDrift(0.1), Everywhere(1))
    return MirrorStep(player, factor, advantage, before, JointRows.whole(R), (0,))


def test_figures_of_a_move() -> None:
    before, after, active = evaluations()
    step = mirror_step(before, active)
    rows: dict[str, list[float]] = {}
    for k in range(K):
        for r in range(R):
            if not active[k, r]:
                continue
            p, q = (
                np.exp(x) / np.exp(x).sum() for x in (e.parameters[k, r].numpy() for e in (before, after))
            )
            ratio = np.exp(float(after.log_prob[k, r] - before.log_prob[k, r]))
            m = float(step.factor[r] * step.advantage[r])
            row = {
                "surrogate_gain": (ratio - 1) * m,
                "drift": max(0.0, (ratio - min(max(ratio, 0.9), 1.1)) * m),
                "mean_kl": sum(p * np.log(p / q)),
                "entropy": -sum(q * np.log(q)),
                "clip_fraction": float(abs(ratio - 1) > CLIP),
            }
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
    expected = {name: np.mean(values) for name, values in rows.items()} | {"max_kl": max(rows["mean_kl"])}
    got = diagnostics.of_move(step, after, CLIP)
    assert {k: float(v) for k, v in got.items()} == pytest.approx(expected, rel=1e-9)
    everyone = diagnostics.of_move(mirror_step(before, torch.ones_like(active)), after, CLIP)
    for name in rows:
        assert float(everyone[name]) != pytest.approx(expected[name], rel=1e-5), f"control: {name}"


def test_figures_of_the_compound_ratio() -> None:
    """Over the rows that count alone: in others the ratio is 1, which says nothing."""
    before, _, active = evaluations()
    factor, counted = before.log_prob[0].exp(), active[0]
    got = diagnostics.of_factor(torch.where(counted, factor, 100), counted, JointRows.whole(R))
    ratios = [float(x) for x, counts in zip(factor, counted, strict=True) if counts]
    assert 0 < len(ratios) < R
    expected = {
        "compound_ratio_mean": np.mean(ratios),
        "compound_ratio_min": min(ratios),
        "compound_ratio_max": max(ratios),
        "effective_sample_size": sum(ratios) ** 2 / (len(ratios) * sum(x**2 for x in ratios)),
    }
    assert {k: float(v) for k, v in got.items()} == pytest.approx(expected, rel=1e-9)
    nobody = diagnostics.of_factor(factor, torch.zeros_like(counted), JointRows.whole(R))
    assert {float(value) for value in nobody.values()} == {1.0}


def test_effective_sample_size_of_the_extremes() -> None:
    """1 while nobody has moved, 1 / S when a single row carries everything."""
    rows, counted = JointRows.whole(R), torch.ones(R, dtype=torch.bool)
    alone = torch.zeros(R)
    alone[3] = 7.0
    assert float(diagnostics.of_factor(torch.ones(R), counted, rows)["effective_sample_size"]) == 1
    assert float(diagnostics.of_factor(alone, counted, rows)["effective_sample_size"]) == pytest.approx(1 / R)


def test_the_improvement_bound_holds_in_a_game_of_two_states() -> None:
    """One agent, exact J: the bound of lemma 6 lies below what a small step really brings, and is not void.

    Both sides are computed from the game's matrices in float64.
    """
    gamma, generator = 0.5, np.random.default_rng(0)
    transition = generator.dirichlet(np.ones(2), size=(2, 3))
    reward = generator.normal(size=(2, 3))
    start = np.array([0.5, 0.5])

    def solve(policy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        chain = np.einsum("sa,sat->st", policy, transition)
        value = np.linalg.solve(np.eye(2) - gamma * chain, (policy * reward).sum(1))
        visits = np.linalg.solve(np.eye(2) - gamma * chain.T, start)
        return value, visits, reward + gamma * transition @ value - value[:, None]

    present = generator.dirichlet(np.ones(3), size=2)
    value, visits, advantage = solve(present)
    for size in (0.003, 0.03, 0.3):
        candidate = present * np.exp(size * advantage)
        candidate /= candidate.sum(1, keepdims=True)
        kl = (present * np.log(present / candidate)).sum(1)
        # What a batch would estimate: the mean of (r - 1) Â under the normalised visitation.
        gain = (1 - gamma) * (visits[:, None] * candidate * advantage).sum()
        bound = diagnostics.improvement_lower_bound(
            torch.tensor(gain / 2.0), torch.tensor(kl.max()), torch.tensor(2.0),
            torch.tensor(np.abs(advantage).max()), gamma,
        )  # fmt: skip
        truth = start @ (solve(candidate)[0] - value)
        assert float(bound) <= truth
        assert (float(bound) > 0) == (size < 0.1), "for small steps the bound promises something"


def test_without_discount_nothing_is_promised() -> None:
    gain = kl = torch.tensor(0.1)
    assert diagnostics.improvement_lower_bound(gain, kl, gain, gain, gamma=1.0) == -torch.inf


def test_the_behaviour_gap_is_the_largest_among_active_rows() -> None:
    before, after, active = evaluations()
    gaps = (before.log_prob - after.log_prob).abs()
    active[:] = True
    worst = int(gaps.argmax())
    assert float(diagnostics.behaviour_gap(before, after.log_prob, active)) == pytest.approx(
        gaps.max().item()
    )
    active.view(-1)[worst] = False
    rest = max(float(g) for i, g in enumerate(gaps.flatten()) if i != worst)
    assert float(diagnostics.behaviour_gap(before, after.log_prob, active)) == pytest.approx(rest)


def test_explained_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    target, noise = torch.randn(R, generator=generator), torch.randn(R, generator=generator)
    rows = JointRows.whole(R)

    def explained(value: Tensor) -> float:
        return float(diagnostics.explained_variance(target, value, rows))

    value = target + 0.5 * noise
    y, residual = (x.double().numpy() for x in (target, target - value))
    assert explained(value) == pytest.approx(1 - residual.var() / y.var(), rel=1e-4)
    assert explained(target) == pytest.approx(1)
    assert explained(torch.full((R,), 3.0)) == pytest.approx(0, abs=1e-5)


def test_a_policy_that_stays_is_clipped_nowhere() -> None:
    """Ratios of exactly 1 are not outside 1 ± 0."""
    before, after, active = evaluations()
    step = mirror_step(before, active)
    assert float(diagnostics.of_move(step, before, 0.0)["clip_fraction"]) == 0
    assert float(diagnostics.of_move(step, after, 0.0)["clip_fraction"]) == pytest.approx(1), "control"
