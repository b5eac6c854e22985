"""What an algorithm cannot go on from is refused with a way out. No Ray process is started."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fragments import TEAM
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPO
from test_checkpoint_files import contents, manifest

from rllib_haml import HAPPO, MAPPO
from rllib_haml.checkpoints import whole
from rllib_haml.checkpoints.read import CLASS_FILE, CheckpointError, check_fit
from rllib_haml.checkpoints.whole import WholeCheckpoints
from rllib_haml.checkpoints.write import write_whole
from rllib_haml.modules.state import load_exactly


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint of HAPPO's."""
    write_whole(tmp_path / "checkpoint", manifest(), contents("first"))
    return tmp_path / "checkpoint"


def test_what_an_algorithm_cannot_go_on_from_is_refused(path: Path, tmp_path: Path) -> None:
    check_fit(path, HAPPO, [TEAM])
    with pytest.raises(CheckpointError, match=r"HAPPO's, this is MAPPO.*`run: HAPPO`"):
        check_fit(path, MAPPO, [TEAM])
    stock = tmp_path / "stock"
    stock.mkdir()
    (stock / CLASS_FILE).write_bytes(pickle.dumps({"class": PPO}))
    check_fit(stock, PPO, [])
    with pytest.raises(CheckpointError, match=r"of RLlib's PPO, not of this package"):
        check_fit(stock, HAPPO, [TEAM])
    with pytest.raises(FileNotFoundError):
        check_fit(tmp_path / "nowhere", PPO, [])


@pytest.mark.parametrize("load", [torch.nn.Module.load_state_dict, load_exactly])
@pytest.mark.parametrize(
    "other, words",
    [(torch.nn.Linear(2, 4), "size mismatch for weight"), (torch.nn.LSTM(2, 2), r"Missing key\(s\)")],
)
def test_other_networks_are_named_with_a_way_out(
    load: Any, other: torch.nn.Module, words: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_others(*args: object, **kwargs: object) -> None:
        load(torch.nn.Linear(2, 3), other.state_dict())

    algo: Any = object.__new__(WholeCheckpoints)
    monkeypatch.setattr(Algorithm, "restore_from_path", load_others)
    monkeypatch.setattr(whole, "refuse_foreign", lambda *_: None)
    algo.config = SimpleNamespace(team=TEAM)
    with pytest.raises(CheckpointError, match=rf"other networks \({words}.*model_config"):
        algo.restore_from_path(path)

    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("anything else")

    monkeypatch.setattr(Algorithm, "restore_from_path", fails)
    with pytest.raises(RuntimeError, match=r"^anything else$"):
        algo.restore_from_path(path)
