"""One adapter's policy in the factors of another."""

from __future__ import annotations

import torch
from torch import Tensor

from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.lora import LoRA
from rllib_haml.modules.lora_rank import spectrum, with_ranks
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


def trimmed(adapter: Adapter) -> Adapter:
    """The same policy without the directions that cannot learn; `adapter` itself if all can."""
    lora = adapter.lora
    ranks = {target: max(1, rank) for target, rank in lora.live_ranks().items()}
    if all(rank == target.rank for target, rank in ranks.items()):
        return adapter
    made = Adapter.over(
        adapter.backbone,
        with_ranks(lora.config, ranks),
        observation_space=adapter.observation_space,
        action_space=adapter.action_space,
        train_backbone=adapter.train_backbone,
    )
    for old, new in zip(lora.targets, made.lora.targets, strict=True):
        _copy_live(lora, old, made.lora, new)
    return made


@torch.no_grad()
def _copy_live(lora: LoRA, old: Target, into: LoRA, new: Target) -> None:
    if old.rank is None:
        into.dense(new).copy_(lora.dense(old))
        return
    a, b = lora.factors(old)
    # Live ones first, in their order.
    kept = (~lora.live(old)).long().argsort(stable=True)[: new.rank]
    for factor, part in zip(into.factors(new), (a[kept], b[:, kept]), strict=True):
        factor.copy_(part)


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
