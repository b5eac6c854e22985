"""Other adapters for a running team, without building it anew."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray.rllib.utils.typing import StateDict

from rllib_haml.algorithms.every_learner import on_every_learner
from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.adapter_files import import_adapter
from rllib_haml.modules.adapter_fit import adopt
from rllib_haml.modules.adapter_mode import AdapterMode


def running_adapter(algorithm: Any, policy: str) -> Adapter:
    """The adapter through which `policy` acts now.

    Raises:
        ValueError: There is none of this name.
    """
    adapter = algorithm.get_module(policy)
    if not isinstance(adapter, Adapter):
        names = sorted(algorithm.config.team.members())
        raise ValueError(f"There is no adapter {policy!r}: expected one of {', '.join(names)}.")
    return adapter


def check_adapters_act(policy: str, switch: Mapping[str, Any], mode: AdapterMode) -> None:
    """
    Args:
        switch: State of the team's `PhaseSwitch`.

    Raises:
        ValueError: The team now trains its shared network alone, which an adapter of `policy` would not
            learn to fit.
    """
    if mode == "continue_shared":
        raise ValueError(
            f"{policy}: with adapter_mode: continue_shared the team trains the shared network for ever, and "
            f"adapters rest: expected another adapter_mode."
        )
    if not switch["done"] and switch["step"] != 0:
        raise ValueError(
            f"{policy}: the team still trains the shared network, and adapters rest. Give it one once "
            f"`adapters_train` is 1, or start with adapters_from: 0."
        )


def load_adapter(algorithm: Any, policy: str, directory: str | Path, *, any_backbone: bool) -> None:
    """See `LoRASA.load_adapter`."""
    running = running_adapter(algorithm, policy)
    made = copy.deepcopy(running)
    made.bind(running.backbone)
    adopt(made, import_adapter(directory, running.backbone, like=running, any_backbone=any_backbone))
    on_every_learner(algorithm, partial(_replace, adapters={policy: made.get_state()}))
    send_weights(algorithm)


def _replace(learner: Any, adapters: dict[str, StateDict]) -> None:
    """Other weights, and no memory of how the former ones moved."""
    for name, state in adapters.items():
        learner.module[name].unwrapped().set_state(state)
        if name in learner._module_optimizers:
            learner.get_optimizer(name).state.clear()


def send_weights(algorithm: Any) -> None:
    """The learners' weights to all env runners, which take none that are as old as their own."""
    algorithm.accept_any_weights()
    algorithm.sampler.take_weights(algorithm.learner_group)
