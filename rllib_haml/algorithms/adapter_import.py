"""Another adapter in a checkpoint: what `LoRASA.load_adapter` does to a running team."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import COMPONENT_OPTIMIZER
from ray.rllib.core.learner.learner import Learner

from rllib_haml.algorithms.adapter_swap import check_adapters_act
from rllib_haml.checkpoints.read import config_of
from rllib_haml.modules.adapter import Adapter

LEARNER = Path("learner_group", "learner")


def check_import(checkpoint: Path, policy: str) -> None:
    """
    Raises:
        ValueError: The team of `checkpoint` trains its shared network alone, or its state cannot be read.
    """
    config = config_of(checkpoint.absolute().as_posix(), LocalFileSystem())
    mode = config["adapter_mode"] if isinstance(config, dict) else config.adapter_mode
    check_adapters_act(policy, _state(checkpoint, Algorithm)["phase_switch"], mode)


def replace_adapter(checkpoint: Path, policy: str, adapter: Adapter) -> None:
    """Writes `adapter` over that of `policy`, and forgets how the former one moved."""
    directory = checkpoint / LEARNER
    adapter.save_to_path(str((directory / "rl_module" / policy).resolve()))
    learner = _state(directory, Learner)
    for optimizer in learner[COMPONENT_OPTIMIZER].values():
        if optimizer["module_id"] == policy:
            optimizer["state"]["state"] = {}
    _file(directory, Learner).write_bytes(pickle.dumps(learner))


def _state(directory: Path, component: type[Algorithm | Learner]) -> Any:
    if not (file := _file(directory, component)).is_file():
        raise ValueError(f"{file} is not there: expected a checkpoint that was saved with use_msgpack=False.")
    return pickle.loads(file.read_bytes())


def _file(directory: Path, component: type[Algorithm | Learner]) -> Path:
    return directory / f"{component.STATE_FILE_NAME}.pkl"
