"""One adapter's policy in the factors of another."""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.lora_rank import spectrum
from rllib_haml.modules.lora_targets import Target

_SETTINGS = {"weight": "target_modules", "bias": "bias", "log_std": "adapt_log_std"}


def adopt(adapter: Adapter, given: Adapter) -> None:
    """Gives `adapter` the policy of `given`, which is over the same backbone.

    Bit for bit where both have equal factors; else up to rounding, in factors that `LoRA.assign` finds.

    Raises:
        ValueError: Its factors cannot express that policy; the message says which keys of `lora` would.
            `adapter` is then as it was.
    """
    if adapter.lora.targets == given.lora.targets:
        adapter.lora.load_state_dict(given.lora.state_dict())
        return
    differs = {target: delta for target, delta in _deltas(given).items() if delta.any()}
    own = {target.name: target for target in adapter.lora.targets}
    lacks = [lack for target in differs if (lack := _lack(own.get(target.name), given, target))]
    if lacks:
        raise ValueError(
            f"This adapter's factors cannot express the given policy: {'; '.join(lacks)}. Set these keys of "
            f"`lora` in this run's config."
        )
    zeros = {target.name: torch.zeros_like(delta) for target, delta in _deltas(adapter).items()}
    adapter.lora.assign(zeros | {target.name: delta for target, delta in differs.items()})


def _deltas(adapter: Adapter) -> dict[Target, Tensor]:
    deltas = adapter.lora.deltas()
    return {target: deltas[target.name].detach() for target in adapter.lora.targets}


def _lack(own: Target | None, given: Adapter, target: Target) -> str | None:
    """What keeps `own` from being the difference `target` of `given`."""
    if own is None:
        return f"{target.name} is not adapted here ({_SETTINGS.get(target.leaf, 'modules_to_save')})"
    if own.rank is None:
        return None
    sizes = spectrum(given.lora, target)
    noise = max(target.shape) * torch.finfo(next(given.parameters()).dtype).eps * sizes[0]
    needed = int((sizes > noise).sum())
    if needed <= own.rank:
        return None
    return f"{target.name} needs rank {needed} and has {own.rank} (r, or rank_pattern for this layer)"
