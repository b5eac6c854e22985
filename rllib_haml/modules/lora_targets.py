"""From a `LoRAConfig` to the parameters of a network that it adapts."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from rllib_haml.modules.lora_config import ALL_LINEAR, LoRAConfig, matches, matches_end
from rllib_haml.nearest import did_you_mean


@dataclass(frozen=True)
class Target:
    """How one parameter of the base is adapted.

    Attributes:
        name: The parameter's.
        shape: Its shape.
        rank: Of the difference; None if it is a dense one.
        scaling: The difference is scaling · B A; 1 if dense.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None = None
    scaling: float = 1.0

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def num_parameters(self) -> int:
        """How many parameters its difference has."""
        return math.prod(self.shape) if self.rank is None else self.rank * sum(self.shape)


def find_targets(base: nn.Module, config: LoRAConfig) -> tuple[Target, ...]:
    """What `config` adapts of `base`, in the order of its parameters.

    Raises:
        ValueError: A name of the configuration stands for no module, or for none that can be adapted so;
            nothing is adapted at all; a rank is full and `full_rank_policy` is `error`.
    """
    saved, linears = saved_modules(base, config), linear_targets(base, config)
    for key in ("rank_pattern", "alpha_pattern"):
        _check_patterns(key, getattr(config, key), linears)
    targets = []
    for name, parameter in base.named_parameters():
        module, _, leaf = name.rpartition(".")
        shape = tuple(parameter.shape)
        if module in linears and leaf == "weight":
            targets.append(_linear_target(name, shape, config))
        elif (
            _inside(module, saved)
            or (leaf == "log_std" and config.adapt_log_std)
            or (
                leaf == "bias"
                and (config.bias == "all" or (config.bias == "lora_only" and module in linears))
            )
        ):
            targets.append(Target(name, shape))
    if not targets:
        raise ValueError("lora: nothing is adapted: name linear layers in target_modules, or 'all-linear'.")
    return tuple(targets)


def full_ranks(base: nn.Module, config: LoRAConfig) -> str:
    """What `full_rank_policy` makes of layers whose rank is not low, in a sentence; empty without any."""
    shapes = {
        name: tuple(base.get_parameter(f"{name}.weight").shape) for name in linear_targets(base, config)
    }
    asked = {name: config.rank_and_scaling(name)[0] for name in shapes}
    full = [
        f"{name} {shape} (r={asked[name]})" for name, shape in shapes.items() if asked[name] >= min(shape)
    ]
    if not full:
        return ""
    made = (
        "differences that are plain matrices" if config.full_rank_policy == "dense" else "the rank they have"
    )
    return (
        f"lora: no low rank for {', '.join(full)}: full_rank_policy={config.full_rank_policy!r} gives them "
        f"{made}. A smaller r, or rank_pattern for these layers, makes it low."
    )


def linear_targets(base: nn.Module, config: LoRAConfig) -> list[str]:
    """The linear layers that `target_modules` names, without the excluded and the saved ones."""
    saved = saved_modules(base, config)
    linears = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    wanted, unwanted = config.target_modules, config.exclude_modules
    if not isinstance(wanted, str):
        _check_listed("target_modules", wanted, linears, base)
    if wanted == ALL_LINEAR:
        wanted = linears
    found = [name for name in linears if matches(wanted, name)]
    if not found and wanted:
        raise ValueError(f"lora: target_modules={wanted!r} matches none of the linear layers {linears}.")
    if isinstance(unwanted, str):
        if not any(matches(unwanted, name) for name in linears):
            raise ValueError(
                f"lora: exclude_modules={unwanted!r} matches none of the linear layers {linears}."
            )
    elif unwanted is not None:
        _check_listed("exclude_modules", unwanted, linears, base)
    kept = [name for name in found if not _inside(name, saved)]
    return [name for name in kept if unwanted is None or not matches(unwanted, name)]


def saved_modules(base: nn.Module, config: LoRAConfig) -> list[str]:
    """The modules that `modules_to_save` names."""
    names = [name for name, _ in base.named_modules() if name]
    _check_listed("modules_to_save", config.modules_to_save, names, base)
    return [name for name in names if matches(config.modules_to_save, name)]


def _inside(module: str, outer: Iterable[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in outer)


def _check_listed(key: str, listed: list[str], possible: list[str], base: nn.Module) -> None:
    modules = dict(base.named_modules())
    for name in listed:
        if any(matches([name], option) for option in possible):
            continue
        kinds = {type(module).__name__ for option, module in modules.items() if matches([name], option)}
        if kinds:
            raise ValueError(
                f"lora: {key} names {name!r}, a {', '.join(sorted(kinds))}: only linear layers have "
                f"low-rank differences. Put it under modules_to_save for dense ones."
            )
        raise ValueError(
            f"lora: {key} names {name!r}, which is no module of the network. {did_you_mean(name, possible)}"
            f"Possible: {', '.join(possible)}."
        )


def _check_patterns(key: str, pattern: Iterable[str], layers: list[str]) -> None:
    for layer in pattern:
        if not any(matches_end(layer, name) for name in layers):
            raise ValueError(
                f"lora: {key} names {layer!r}, which matches none of the layers with low-rank differences, "
                f"{', '.join(layers) or '(there are none)'}. {did_you_mean(layer, layers)}"
            )


def _linear_target(name: str, shape: tuple[int, ...], config: LoRAConfig) -> Target:
    rank, scaling = config.rank_and_scaling(name.rpartition(".")[0])
    full = min(shape)
    if rank < full:
        return Target(name, shape, rank, scaling)
    given = f"lora: {name} {shape} has at most rank {full}, and r={rank}"
    if config.full_rank_policy == "error":
        raise ValueError(
            f"{given}: choose a smaller r (rank_pattern for this layer only), or full_rank_policy "
            f"'dense' or 'clip'."
        )
    return Target(name, shape) if config.full_rank_policy == "dense" else Target(name, shape, full, scaling)
