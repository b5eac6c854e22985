"""One update equals the reference implementation's, whose inputs and outputs are stored in float64.

The stored sweeps went over the agents in the order of their names. HAPPO and HAA2C: full batch, 4 and 3
epochs of Adam (lr 5e-4, eps 1e-5), clip 0.1 and none, entropy bonus 0.01, gradient norm clipped at 10.
HATRPO: δ = 0.01, no entropy bonus.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from haml_policies import DATA, Network, NetworkPolicy, apart
from torch import Tensor

from rllib_haml.haml import (
    ClipDrift,
    Drift,
    Everywhere,
    FixedOrder,
    JointRows,
    KLBall,
    MirrorStep,
    Neighbourhood,
    NoDrift,
    Player,
    SweepResult,
    ValueNorm,
    sweep,
)

CASES = ["happo_gaussian", "happo_categorical_masked", "haa2c_gaussian"]
CLIPPED, ENTROPY_COEFF = CASES[:2], 0.01


@dataclass
class Watched:
    """`Everywhere`, one full-batch epoch at a time; keeps M and each loss without its entropy bonus."""

    epochs: int
    m: Tensor = field(default_factory=lambda: torch.empty(0))
    losses: list[float] = field(default_factory=list)

    def maximise(self, step: MirrorStep) -> dict[str, Tensor]:
        self.m = step.m
        for _ in range(self.epochs):
            policy = step.player.policy
            entropy = policy.evaluate(slice(None)).entropy[policy.active].mean().item()
            report = Everywhere(num_epochs=1, grad_clip=10.0).maximise(step)
            self.losses.append(report["policy_loss"].item() + ENTROPY_COEFF * entropy)
        return {}


def load(case: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{case}.npz") as data:
        return dict(data)


def agents(data: dict[str, np.ndarray]) -> list[str]:
    return sorted({key.split("/")[0] for key in data if key.startswith("agent")})


def weights(data: dict[str, np.ndarray], agent: str, when: str) -> dict[str, Tensor]:
    prefix = f"{agent}/{when}/"
    return {k.removeprefix(prefix): torch.tensor(v) for k, v in data.items() if k.startswith(prefix)}


def policy(data: dict[str, np.ndarray], agent: str) -> NetworkPolicy:
    before = weights(data, agent, "before")
    gaussian = "head.log_std" in before
    head = before["head.fc_mean.bias" if gaussian else "head.linear.bias"]
    obs, action = (torch.tensor(data[f"{agent}/{name}"]) for name in ("obs", "action"))
    network = Network(obs.shape[1], len(head), gaussian)
    network.load_state_dict(before)
    mask = data.get(f"{agent}/action_mask")
    return NetworkPolicy(
        network,
        obs,
        action,
        active=torch.tensor(data[f"{agent}/active"]),
        action_mask=None if mask is None else torch.tensor(mask),
    )


def drift_of(case: str) -> Drift:
    return ClipDrift(0.1) if case in CLIPPED else NoDrift()


def run(
    data: dict[str, np.ndarray], drift: Drift, simultaneous: bool = False
) -> tuple[dict[str, Player], dict[str, Watched], SweepResult]:
    """The sweep by epochs of Adam."""
    watched = {name: Watched(len(data[f"{name}/policy_loss"])) for name in agents(data)}
    players = {name: Player(policy(data, name), drift, watched[name], ENTROPY_COEFF) for name in watched}
    return players, watched, run_sweep(data, players, simultaneous)


def run_trust_region(
    neighbourhood: Neighbourhood,
) -> tuple[dict[str, np.ndarray], dict[str, Player], SweepResult]:
    """The stored HATRPO sweep with the given neighbourhood."""
    data = load("hatrpo_gaussian")
    players = {name: Player(policy(data, name), NoDrift(), neighbourhood) for name in agents(data)}
    return data, players, run_sweep(data, players)


def run_sweep(
    data: dict[str, np.ndarray], players: dict[str, Player], simultaneous: bool = False
) -> SweepResult:
    return sweep(
        players,
        lambda log_factor: torch.tensor(data["advantage"]),
        order=FixedOrder(tuple(players)),
        rows=JointRows.whole(len(data["advantage"])),
        simultaneous=simultaneous,
    )


def ratio_error(data: dict[str, np.ndarray], result: SweepResult) -> float:
    """Largest distance of a compound ratio, after any of the agents moved, from the reference's."""
    furthest = apart(result.log_factor.exp(), data[f"{agents(data)[-1]}/factor_out"])
    for name in agents(data):
        change = (result.after[name].log_prob - result.steps[name].before.log_prob)[0].numpy()
        ratio = np.where(data[f"{name}/active"], np.exp(change), 1.0)
        furthest = max(furthest, apart(data[f"{name}/factor_in"] * ratio, data[f"{name}/factor_out"]))
    return furthest


def weight_error(data: dict[str, np.ndarray], players: dict[str, Player]) -> float:
    """Largest distance of a weight from the reference's."""
    return max(
        apart(value, data[f"{name}/after/{key}"])
        for name, player in players.items()
        for key, value in player.policy.network.state_dict().items()  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize("case", [*CASES, "hatrpo_gaussian"])
def test_network_is_the_stored_one(case: str) -> None:
    """The stored log-probabilities are those of the weights before, where an agent acted."""
    data = load(case)
    for name in agents(data):
        stored, active = data[f"{name}/logp"], data[f"{name}/active"]
        found = policy(data, name).evaluate(slice(None)).log_prob[0].detach()
        assert apart(found[active], stored[active]) < 1e-9


@pytest.mark.parametrize("case", CASES)
def test_sweep_equals_reference(case: str) -> None:
    """Weights, compound ratio before and after each agent, M and the loss of every epoch, to 1e-9."""
    data = load(case)
    players, watched, result = run(data, drift_of(case))
    assert result.order == agents(data)
    assert weight_error(data, players) < 1e-9
    for name in agents(data):
        m = data[f"{name}/factor_in"] * data["advantage"]
        assert apart(watched[name].m, m) < 1e-9
        assert apart(np.array(watched[name].losses), data[f"{name}/policy_loss"]) < 1e-9
    assert ratio_error(data, result) < 1e-9


@pytest.mark.parametrize("case", CASES)
def test_without_the_factor_the_reference_is_missed(case: str) -> None:
    """Control: a simultaneous update gives the first agent's weights and misses the later agents' by 1e-3."""
    data = load(case)
    players, _, _ = run(data, drift_of(case), simultaneous=True)
    first, *later = agents(data)
    assert weight_error(data, {first: players[first]}) < 1e-9
    assert all(weight_error(data, {name: players[name]}) > 1e-3 for name in later)


@pytest.mark.parametrize("epsilon", [None, 0.12])
def test_without_the_clip_the_reference_is_missed(epsilon: float | None) -> None:
    """Control: no drift, or one of another width, ends elsewhere."""
    data = load("happo_gaussian")
    players, _, _ = run(data, NoDrift() if epsilon is None else ClipDrift(epsilon))
    assert weight_error(data, players) > 1e-3


def test_trust_region_equals_reference() -> None:
    """HATRPO: weights, compound ratios, gains and KL to 1e-9."""
    data, players, result = run_trust_region(KLBall(0.01))
    assert weight_error(data, players) < 1e-9
    assert ratio_error(data, result) < 1e-9
    for name in agents(data):
        report = result.reports[name]
        assert apart(report["objective_gain"], data[f"{name}/surrogate_gain"]) < 1e-9
        assert apart(report["kl"], data[f"{name}/kl"]) < 1e-9
        assert report["line_search_accepted"] == 1


@pytest.mark.parametrize(
    "other",
    [KLBall(0.011), KLBall(0.01, cg_iterations=3), KLBall(0.01, cg_damping=0.05), Everywhere(1)],
    ids=["radius", "iterations", "damping", "Adam"],
)
def test_another_trust_region_misses_the_reference(other: Neighbourhood) -> None:
    """Control: a larger ball, a coarser or differently damped solution, or a step of Adam ends elsewhere."""
    data, players, result = run_trust_region(other)
    assert weight_error(data, players) > 1e-4
    assert ratio_error(data, result) > 1e-3


def test_value_norm_equals_reference() -> None:
    """Mean and variance after each batch, and the last batch normalised, to 1e-9."""
    data = load("value_norm")
    norm = ValueNorm()
    for batch, expected in zip(data["batches"], data["mean_var"], strict=True):
        norm.update(torch.tensor(batch))
        assert apart(torch.stack(norm.mean_var()), expected) < 1e-9
    assert apart(norm.normalise(torch.tensor(data["batches"][-1])), data["normalised_last"]) < 1e-9
