"""Actions that a mask forbids are an error, never something else that is silently done instead."""

from __future__ import annotations

import numpy as np


def check_legal(agent: str, action: int, mask: np.ndarray) -> None:
    """Raises a `ValueError` unless `mask` (n,) allows `action`."""
    if not (0 <= action < len(mask) and mask[action]):
        raise ValueError(
            f"agent {agent!r} cannot do action {action}; its action_mask allows "
            f"{np.flatnonzero(mask).tolist()}. (RLlib's check of an environment draws actions without masks: "
            f"switch it off with `disable_env_checking: true`.)"
        )
