"""Adapters as files, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rllib_haml.modules.actor import Actor
from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.adapter_fit import trimmed
from rllib_haml.modules.lora import LoRA
from rllib_haml.modules.lora_config import LoRAConfig, exactly
from rllib_haml.modules.lora_targets import Target, linear_targets, saved_modules

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
OWN_KEY = "rllib_haml"

_PREFIX = "base_model.model."
_SHARED_KEYS = (
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "bias",
    "modules_to_save",
)
# What PEFT can do besides, and would change the policy if it were ignored.
_FOREIGN_KEYS = ("use_dora", "fan_in_fan_out", "lora_bias", "layers_to_transform", "target_parameters")


def backbone_sha256(backbone: nn.Module) -> str:
    """A number that any change of a tensor of `backbone` changes: of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def export_adapter(adapter: Adapter, directory: str | Path) -> None:
    """Writes the adapter's files, without the backbone; PEFT opens them over the same network, of which an
    agent with narrower spaces has the leading part.

    Dense differences of linear layers are written as full-rank factors, one of which is the identity;
    others as PEFT's `modules_to_save` and biases are: the sum of base and difference.

    Directions of low-rank differences that cannot learn are left out.

    Raises:
        RuntimeError: The adapter is bound to no backbone.
    """
    directory, adapter = Path(directory), trimmed(adapter)
    directory.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in _tensors(adapter).items()}, directory / TENSORS_FILE)
    (directory / CONFIG_FILE).write_text(json.dumps(_peft_config(adapter), indent=2) + "\n", encoding="utf-8")


def import_adapter(
    directory: str | Path,
    backbone: Actor,
    *,
    like: Adapter | None = None,
    any_backbone: bool = False,
) -> Adapter:
    """The adapter in these files, bound to `backbone`.

    Args:
        like: An adapter of the agent whose it becomes, if its spaces are not the backbone's.
        any_backbone: Whether `backbone` may be another than the adapter was exported with, or than PEFT
            trained it over, which its files do not say.

    Raises:
        FileNotFoundError: There is no adapter in this directory.
        ValueError: It was made over another backbone; a file cannot be read; its tensors' names, shapes or
            types are not those that its configuration asks for, or not all numbers; PEFT's keys contradict
            this package's; or it uses what this package has not.
    """
    directory = Path(directory)
    for name in (CONFIG_FILE, TENSORS_FILE):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory} holds no adapter: expected {name} in it.")
    values, config = _read_config(directory / CONFIG_FILE)
    if not any_backbone:
        _check_backbone(values.get(OWN_KEY, {}).get("backbone_sha256"), backbone, directory)
    agent = like or backbone
    try:
        adapter = Adapter.over(
            backbone,
            config,
            observation_space=agent.observation_space,
            action_space=agent.action_space,
        )
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{directory / CONFIG_FILE} does not fit this backbone: {error}") from error
    tensors = _read_tensors(directory / TENSORS_FILE)
    _check_tensors(tensors, _tensors(adapter), directory)
    _check_agreement(values, adapter, directory)
    _load(adapter, tensors)
    _check_finite(adapter, directory)
    return adapter


def _peft_config(adapter: Adapter) -> dict[str, Any]:
    backbone, config = adapter.backbone, adapter.lora.config
    linears = linear_targets(backbone, config)
    ranks, alphas = {}, {}
    for target in adapter.lora.targets:
        if _is_matrix(target, linears):
            rank = min(target.shape) if target.rank is None else target.rank
            alpha = config.alpha_of(target.scaling, rank)
            ranks |= {exactly(target.module): rank} if rank != config.r else {}
            alphas |= {exactly(target.module): alpha} if alpha != config.lora_alpha else {}
    heads = [target.module for target in adapter.lora.targets if target.leaf == "log_std"]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": 0.0,
        "target_modules": linears,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": config.use_rslora,
        "bias": config.bias,
        "init_lora_weights": True,
        "modules_to_save": sorted({*saved_modules(backbone, config), *heads}) or None,
        OWN_KEY: {"backbone_sha256": backbone_sha256(backbone), "lora": config.to_dict()},
    }


def _read_config(file: Path) -> tuple[dict[str, Any], LoRAConfig]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        return values, _lora_config(values)
    # RecursionError: values lie too deep within each other; TypeError: PEFT has other kinds for its keys.
    except (ValueError, RecursionError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    # TypeError is that of a header whose values are of the wrong kind.
    except (SafetensorError, TypeError, KeyError) as error:
        raise ValueError(f"{file} is damaged: {error}. Export or copy the adapter anew.") from error


def _lora_config(values: dict[str, Any]) -> LoRAConfig:
    """This package's own configuration where it wrote the files, else PEFT's."""
    if OWN_KEY in values:
        own = values[OWN_KEY]
        if not isinstance(own, dict) or not {"lora", "backbone_sha256"} <= own.keys():
            raise ValueError(
                f"{OWN_KEY!r} is to hold 'lora' and 'backbone_sha256', as exported adapters have it"
            )
        return LoRAConfig.from_dict(own["lora"])
    foreign = [key for key in _FOREIGN_KEYS if values.get(key)]
    if values.get("peft_type") != "LORA" or foreign:
        raise ValueError(
            f"This adapter is a {values.get('peft_type')} with {', '.join(foreign) or 'its own settings'}: "
            f"expected a plain LORA. Merge it with PEFT (`merge_and_unload`) and use the policy that results."
        )
    shared = {key: values[key] for key in _SHARED_KEYS if values.get(key) is not None}
    # False in PEFT: as torch draws them; it makes no difference once there are tensors.
    init = values.get("init_lora_weights") or True
    return LoRAConfig(**shared, init_lora_weights=init, adapt_log_std=False, full_rank_policy="clip")


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Under PEFT's names: what the file holds."""
    linears, base = linear_targets(adapter.backbone, adapter.lora.config), adapter.base_weights()
    tensors: dict[str, Tensor] = {}
    for target in adapter.lora.targets:
        if _is_matrix(target, linears):
            tensors |= dict(zip(_factor_names(target), _factors(adapter.lora, target), strict=True))
        else:
            tensors[_value_name(target, linears)] = base[target.name] + adapter.lora.dense(target)
    return {name: tensor.detach() for name, tensor in tensors.items()}


@torch.no_grad()
def _load(adapter: Adapter, tensors: dict[str, Tensor]) -> None:
    linears, base = linear_targets(adapter.backbone, adapter.lora.config), adapter.base_weights()
    for target in adapter.lora.targets:
        if not _is_matrix(target, linears):
            value = tensors[_value_name(target, linears)]
            adapter.lora.dense(target).copy_(value.double() - base[target.name].double())
            continue
        a, b = (tensors[name] for name in _factor_names(target))
        if target.rank is None:
            adapter.lora.dense(target).copy_(b @ a)
        else:
            for own, given in zip(adapter.lora.factors(target), (a, b), strict=True):
                own.copy_(given)


def _is_matrix(target: Target, linears: list[str]) -> bool:
    return target.leaf == "weight" and target.module in linears


def _factor_names(target: Target) -> tuple[str, str]:
    return f"{_PREFIX}{target.module}.lora_A.weight", f"{_PREFIX}{target.module}.lora_B.weight"


def _value_name(target: Target, linears: list[str]) -> str:
    """PEFT wraps the layers that have factors."""
    inner = "base_layer." if target.module in linears else ""
    return f"{_PREFIX}{target.module}.{inner}{target.leaf}"


def _factors(lora: LoRA, target: Target) -> tuple[Tensor, Tensor]:
    """A and B; of a dense difference itself and the identity, on the side where it is smaller."""
    if target.rank is not None:
        return lora.factors(target)
    delta = lora.dense(target)
    out, inputs = delta.shape
    unit = torch.eye(min(out, inputs), dtype=delta.dtype, device=delta.device)
    return (delta, unit) if out <= inputs else (unit, delta)


def _check_backbone(expected: str | None, backbone: Actor, directory: Path) -> None:
    given = backbone_sha256(backbone)
    if expected == given:
        return
    made = (
        f"was exported over the backbone {expected}, and this one is {given}"
        if expected
        else f"does not say over which backbone it was made (PEFT's own do not); this one is {given}"
    )
    raise ValueError(
        f"The adapter in {directory} {made}: over another backbone it is another policy. Give the one that "
        f"it was made with, or take any with any_backbone=True (`rllib adapters import --any-backbone`)."
    )


def _check_agreement(values: dict[str, Any], adapter: Adapter, directory: Path) -> None:
    """PEFT's keys, which PEFT alone reads, say what this package's say, where there are both."""
    if OWN_KEY not in values:
        return
    written = _peft_config(adapter)
    told = {key: written.get(key) for key in ("peft_type", *_SHARED_KEYS, *_FOREIGN_KEYS)}
    differ = [key for key in told if key in values and not _is_same(values[key], told[key])]
    if differ:
        both = "; ".join(f"{key} is {values[key]!r}, and {told[key]!r} by {OWN_KEY!r}" for key in differ)
        raise ValueError(
            f"{directory / CONFIG_FILE} contradicts itself: {both}. Change both, or delete {OWN_KEY!r} and "
            f"take it as PEFT's (any_backbone=True, `--any-backbone`)."
        )


def _is_same(given: Any, told: Any) -> bool:
    if isinstance(given, list) and isinstance(told, list):
        return sorted(map(str, given)) == sorted(map(str, told))
    return (given or None) == (told or None)


def _check_finite(adapter: Adapter, directory: Path) -> None:
    """Also what a huge scaling makes of them."""
    endless = [name for name, delta in adapter.lora.deltas().items() if not delta.isfinite().all()]
    if endless:
        raise ValueError(
            f"The adapter in {directory} has NaN or infinite weights, of {', '.join(endless)}: no policy can "
            f"act or train with them. Export the adapter of an earlier checkpoint."
        )


def _check_tensors(given: dict[str, Tensor], expected: dict[str, Tensor], directory: Path) -> None:
    def described(tensors: dict[str, Tensor]) -> set[str]:
        return {f"{name} {tuple(x.shape)} {x.dtype}" for name, x in tensors.items()}

    missing = sorted(described(expected) - described(given))
    unknown = sorted(described(given) - described(expected))
    if missing or unknown:
        raise ValueError(
            f"{directory / TENSORS_FILE} does not hold what {CONFIG_FILE} asks for over this backbone. "
            f"Expected, but not there: {missing}. There, but not expected: {unknown}."
        )
