"""A fast part of the learning grid: one algorithm for each kind of action space, and what must not learn."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "learning"))
import grid

GAMES = [
    ("A2PO", "Box", False, "mlp"),
    ("HAPPO", "Discrete", True, "gru"),
    ("HATRPO", "MultiDiscrete", True, "mlp"),
    ("MAPPO", "MultiBinary", False, "mlp"),
    ("HAKL", "Tuple", True, "mlp"),
    ("HAA2C", "Dict", True, "mlp"),
]


@pytest.mark.parametrize("algorithm, kind, masked, network", GAMES)
def test_the_optimum_is_reached(
    ray_cluster: Any, algorithm: str, kind: str, masked: bool, network: str
) -> None:
    row = grid.run(algorithm, network, 1, 30_000, kind=kind, masked=masked, shuffled=False)
    assert row["reached_at"], row
    assert float(row["gap"]) < 1e-4


@pytest.mark.parametrize("network, shuffled", [("mlp", True), ("forgetful", False)])
def test_control_nothing_is_learnt(ray_cluster: Any, network: str, shuffled: bool) -> None:
    """Paid the scores of other steps, or without the memory that the game asks for; chance is 1/16."""
    row = grid.run("HAPPO", network, 1, 10_000, kind="Discrete", masked=False, shuffled=shuffled)
    assert not row["reached_at"]
    assert row["score"] < 0.4
