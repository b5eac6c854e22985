"""Checkpoints and adapters of earlier releases load, answer as they did, and train on as they would have.

`data/checkpoint/make.py` made them, and wrote beside them what the algorithm answered then.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rllib_haml import LoRASA
from rllib_haml.algorithms.haml import HAML
from rllib_haml.checkpoints.policies import modules_of
from rllib_haml.modules.adapter_files import import_adapter

STORED = Path(__file__).parents[1] / "data" / "checkpoint"
MAKE = runpy.run_path(str(STORED / "make.py"))
CHECKPOINTS = sorted(path.stem for path in STORED.glob("*.npz"))
ADAPTERS = sorted((STORED / "lorasa_adapting_adapters").iterdir())


def different(found: dict[str, np.ndarray], expected: Any) -> set[str]:
    """Names of what is not as it was; other processors round otherwise."""
    return {k for k, v in found.items() if not np.allclose(v, expected[k], rtol=1e-4, atol=1e-5)}


def loaded(name: str, stopping: list[Any]) -> Any:
    algo: Any = HAML.from_checkpoint(STORED / name)
    stopping.append(algo)
    return algo


def test_every_kind_is_stored() -> None:
    assert sorted(MAKE["configs"]()) == CHECKPOINTS
    assert sum(f.stat().st_size for f in STORED.rglob("*") if f.is_file()) < 600_000


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_it_answers_and_trains_on(name: str, ray_cluster: Any, stopping: list[Any]) -> None:
    """Control: without the moments of its optimizers it goes elsewhere."""
    expected = np.load(STORED / f"{name}.npz")
    algo = loaded(name, stopping)
    assert different(MAKE["answers"](algo), expected) == set()
    assert algo.train()["training_iteration"] == 3
    assert different(MAKE["weights"](algo), expected) == set()
    control = loaded(name, stopping)
    for optimizer in control.learner_group._learner._named_optimizers.values():
        optimizer.state.clear()
    control.train()
    # A trust region has no optimizer, and a backbone that has been adapted rests.
    by_adam = {"critic"} if name.startswith("hatrpo") else MAKE["answers"](control).keys() - {"backbone"}
    assert different(MAKE["weights"](control), expected) == {f"{module}/weights" for module in by_adam}


@pytest.mark.parametrize("files", ADAPTERS, ids=lambda path: path.name)
def test_adapters_act_as_they_did(files: Path) -> None:
    """Over the backbone of the checkpoint beside them. Control: the backbone alone, and the other's."""
    expected = np.load(STORED / "lorasa_adapting.npz")
    team = modules_of(STORED / "lorasa_adapting")
    adapter = import_adapter(files, team["backbone"], like=team[files.name])
    found = MAKE["answer"](adapter)
    policies = ("backbone", *(path.name for path in ADAPTERS))
    assert {name for name in policies if not different({name: found}, expected)} == {files.name}


def test_a_running_team_takes_them(ray_cluster: Any, stopping: list[Any]) -> None:
    """Each the other's, after which they have changed places."""
    expected = np.load(STORED / "lorasa_adapting.npz")
    algo: LoRASA = loaded("lorasa_adapting", stopping)
    one, other = (path.name for path in ADAPTERS)
    for here, there in ((one, other), (other, one)):
        algo.load_adapter(here, STORED / "lorasa_adapting_adapters" / there)
    found = MAKE["answers"](algo)
    assert different({other: found[one], one: found[other]}, expected) == set()
    algo.train()
