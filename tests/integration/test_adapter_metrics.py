"""Results tell how far the adapters have drifted, once they train."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_lorasa import AGENTS, STEPS, config

from rllib_haml.cli.adapters import _adapters
from rllib_haml.cli.report import report
from rllib_haml.modules.adapter_drift import audit_adapters

OF_TEAM = {"relative_norm", "stable_rank", "cosine", "divergence", "rank", "trainable", "stored_bytes"}


def test_results_hold_the_audit(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    algo = config(STEPS, lr=1e-2).build_algo()
    sharing: Any = algo.train()
    assert not [key for of in sharing["learners"].values() for key in of if key.startswith("adapter_")]
    result: Any = algo.train()
    path = Path(algo.save_to_path(str(tmp_path / "checkpoint")))
    algo.stop()
    learners = result["learners"]
    audit = audit_adapters(_adapters(path))
    assert {f"adapter_{key}" for key in OF_TEAM} <= set(learners["__all_modules__"])
    for key, value in audit.metrics().items():
        assert learners["__all_modules__"][key] == pytest.approx(value, rel=1e-5)
    for agent, figures in audit.by_agent().items():
        assert {key: learners[agent][key] for key in figures} == pytest.approx(figures, rel=1e-5)
        assert learners[agent]["adapter_divergence"] > 1e-6
        assert learners[agent]["adapter_rank"] == 2
    ended: Any = [SimpleNamespace(error=None, checkpoint=None, metrics=result)]
    report("x", ended, "PATH", 0)
    table = capsys.readouterr().out.partition("adapters\n")[2].splitlines()
    assert {line.split()[0] for line in table[1:]} == AGENTS
