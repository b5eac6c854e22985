"""What of LoRASA's config can only be judged once the team is known: networks, and settings by module."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from rllib_haml.modules.actor import Actor
from rllib_haml.modules.adapter import BACKBONE, on_meta
from rllib_haml.modules.adapter_mode import LOW_RANK_MODES, backbone_moves, lora_of
from rllib_haml.modules.lora_config import LoRAConfig
from rllib_haml.modules.lora_targets import find_targets, full_ranks
from rllib_haml.modules.model_config import ModelConfig
from rllib_haml.sampling.team import Team

logger = logging.getLogger("rllib_haml")

# Of a module's settings, those of its own optimizer: they hold even where it moves with others.
_OF_OPTIMIZERS = {"lr", "adam_epsilon", "weight_decay"}


def check_lora(config: Any) -> None:
    """
    Raises:
        ValueError: `lora` or `critic_lora` has an unknown key or a wrong value.
    """
    LoRAConfig.from_dict(config.lora)
    if config.critic_lora is not None:
        with _of_the_critic():
            LoRAConfig.from_dict(config.critic_lora)


def check_adapted_networks(config: Any, team: Team) -> None:
    """Finds out here what would otherwise fail on every env runner and learner, without making a network.

    Raises:
        ValueError: `lora` or `critic_lora` does not fit the networks that it adapts.
    """
    network = config.network_config()
    recurrent = ModelConfig.from_dict(network).is_recurrent
    lora = LoRAConfig.from_dict(lora_of(config.adapter_mode, config.lora, recurrent))
    spaces = [(team.observation_spaces[agent], team.action_spaces[agent]) for agent in team.agents]
    for observations, actions in {repr(pair): pair for pair in spaces}.values():
        actor = on_meta(Actor, observations, actions, network)
        find_targets(actor, lora)
        if config.adapter_mode in LOW_RANK_MODES:
            _tell(full_ranks(actor, lora))
    if config.critic_lora is not None:
        spec = config.critic_spec(team, network)
        with _of_the_critic():
            on_meta(spec.module_class, spec.observation_space, spec.action_space, spec.model_config)


def check_overrides(config: Any, team: Team) -> None:
    """Tells what settings of one module do to those that move with it.

    Raises:
        ValueError: An adapter has settings of its own that nothing would read, since it never moves alone.
    """
    overrides, mode = config.algorithm_config_overrides_per_module, config.adapter_mode
    adapters = [name for name in overrides if name in team.members()]
    if backbone_moves(mode):
        for name in (BACKBONE, *adapters):
            _check_shared_step(name, sorted(overrides.get(name, {}).keys() - _OF_OPTIMIZERS), mode)
    if adapters and config.update_scheme == "simultaneous" and mode not in ("joint", "continue_shared"):
        _tell(
            f"algorithm_config_overrides_per_module names {', '.join(adapters)}: with update_scheme: "
            f"simultaneous every adapter then moves by a mean and a gradient norm of its own; without "
            f"these settings, all have them in common."
        )


def _check_shared_step(name: str, settings: list[str], mode: str) -> None:
    """`settings` of `name` that are no optimizer's, where the backbone moves."""
    if not settings:
        return
    given = f"algorithm_config_overrides_per_module gives {name!r} {', '.join(settings)}"
    if name == BACKBONE:
        _tell(f"{given}: with adapter_mode: {mode} these hold for all that moves with it.")
    elif mode == "joint":
        raise ValueError(
            f"{given}, which nothing would read: with adapter_mode: joint all adapters move in one step "
            f"with the backbone. Set it with .training(), or for {BACKBONE!r}; an adapter's own are "
            f"{', '.join(sorted(_OF_OPTIMIZERS))} alone."
        )
    else:
        _tell(f"{given}: with adapter_mode: alternating these hold in the adapters' turns only.")


@contextmanager
def _of_the_critic() -> Iterator[None]:
    """What is wrong with `lora` there is wrong with `critic_lora` here."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"critic_{error}" if str(error).startswith("lora") else str(error)) from error


@cache
def _tell(message: str) -> None:
    """Once in a process, however often a config is validated."""
    if message:
        logger.warning(message)
