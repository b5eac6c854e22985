"""Agents of one group have one adapter: one policy, one step of the sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_lorasa import STEPS, config, moved, weights

from rllib_haml import LoRASA

GROUPS = {"first": ["agent_0"], "others": ["agent_1", "agent_2"]}


@pytest.mark.parametrize("scheme", ["sequential", "simultaneous"])
def test_a_group_is_one_player(ray_cluster: None, tmp_path: Path, scheme: str) -> None:
    algo = config(STEPS, adapter_mapping_fn=GROUPS, update_scheme=scheme).build_algo()
    start = weights(algo)
    assert moved(start, (algo.train(), weights(algo))[1]) == {"backbone", "critic"}
    learners = algo.train()["learners"]
    assert moved(start, weights(algo)) == {"backbone", "critic", "first", "others"}
    assert {learners[name]["order"] for name in GROUPS} == {0, 1}
    assert all(learners[name]["behaviour_gap"] < 1e-4 for name in GROUPS)
    assert not set(learners) & {"agent_0", "agent_1", "agent_2"}
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    trained = weights(algo)
    algo.stop()
    restored: Any = LoRASA.from_checkpoint(path)
    assert restored.config.team.members() == GROUPS
    for name, tensors in weights(restored).items():
        assert all(np.array_equal(trained[name][key], value) for key, value in tensors.items())
    restored.stop()
