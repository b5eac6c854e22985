"""Tensors are made where the rows lie: a default device on which nothing can be computed changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from haml_policies import Network, NetworkPolicy, adam

from rllib_haml.haml import (
    ClipDrift,
    Everywhere,
    JointRows,
    KLBall,
    Player,
    RandomOrder,
    SemiGreedyOrder,
    sweep,
)

STEPS = 24


def swept(neighbourhood: Any, order: Any, units: bool) -> dict[str, Any]:
    """The weights after a sweep of two policies on one batch."""
    torch.manual_seed(0)
    policies = {
        name: NetworkPolicy(
            Network(3, 2, gaussian=True),
            torch.randn(STEPS, 3).double(),
            torch.randn(STEPS, 2).double(),
            optimizer=adam(1e-2),
        )
        for name in "ab"
    }
    advantage = torch.randn(STEPS).double()
    players = {name: Player(policy, ClipDrift(0.2), neighbourhood, 0.01) for name, policy in policies.items()}
    index = torch.arange(STEPS)
    rows = JointRows(index, STEPS, units=index // 3 if units else None)
    with torch.device("meta"):
        result = sweep(players, lambda factor: advantage + factor.double(), order=order, rows=rows)
    assert torch.empty(0).device.type == "cpu"
    assert result.log_factor.device.type == "cpu"
    for report in result.reports.values():
        assert not any(figure.requires_grad for figure in report.values()), "no graph is kept alive"
    return {name: [p.clone() for p in policy.parameters()] for name, policy in policies.items()}


@pytest.mark.parametrize("order", [RandomOrder(), SemiGreedyOrder()])
@pytest.mark.parametrize("neighbourhood", [Everywhere(2, 7, 0.5), KLBall(0.01)])
@pytest.mark.parametrize("units", [False, True])
def test_nothing_is_made_on_the_default_device(neighbourhood: Any, order: Any, units: bool) -> None:
    for parameters in swept(neighbourhood, order, units).values():
        assert all(p.isfinite().all() for p in parameters)
