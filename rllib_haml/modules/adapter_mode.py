"""What moves once a team no longer shares everything: the paper's way, its ablations and its controls."""

from __future__ import annotations

from typing import Any, Literal, get_args

AdapterMode = Literal["frozen", "joint", "alternating", "continue_shared", "dense_delta", "separate"]
LOW_RANK_MODES: tuple[AdapterMode, ...] = ("frozen", "joint", "alternating")
ADAPTER_MODES: tuple[AdapterMode, ...] = get_args(AdapterMode)

# No layer is so wide: every difference is a dense one.
FULL_RANK = 10**6


def backbone_moves(mode: AdapterMode) -> bool:
    """Whether the backbone is trained through the adapters."""
    return mode in ("joint", "alternating")


def lora_of(mode: AdapterMode, lora: dict[str, Any], recurrent: bool) -> dict[str, Any]:
    """The keys of `LoRAConfig` with which the adapters of `mode` are made.

    A network of an agent's own is the backbone plus a dense difference of every parameter: the same
    function and the same gradients.

    Args:
        lora: The user's keys.
        recurrent: Whether the networks are recurrent.
    """
    if mode == "dense_delta":
        return lora | {"r": FULL_RANK, "rank_pattern": {}, "full_rank_policy": "dense"}
    if mode == "separate":
        parts = ["network", "head", *(["memory", "output"] if recurrent else [])]
        return {"modules_to_save": parts}
    return lora
