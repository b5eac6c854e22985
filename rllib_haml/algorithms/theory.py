"""Where a configuration leaves the conditions of HAML's guarantee of joint improvement."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from rllib_haml.haml import Drift, DriftCheck, check_drift

logger = logging.getLogger("rllib_haml")

_said: set[str] = set()


def warn_where_theory_ends(config: Any) -> None:
    """Says in the log, once in a process, what the theorem does not cover; only of sequential updates."""
    if config.team is None or config.in_evaluation or config.update_scheme != "sequential":
        return
    shared = {m: a for m, a in config.team.members().items() if len(a) > 1}
    if shared:
        _say_once(
            f"Policies shared by several agents, {shared}, move as one: their surrogate takes each "
            f"member's ratio by itself, so it is the group's joint one, and HAML's guarantee holds, to "
            f"first order only. Leave `policies` and `policy_mapping_fn` unset (LoRASA: "
            f"`adapter_mapping_fn: agent`) for a policy per agent."
        )
    if not config.drift_check().holds:
        _say_once(config.drift_check().message)
    if config.entropy_coeff:
        _say_once(
            f"entropy_coeff={config.entropy_coeff}: an entropy bonus has a gradient at the present policy, "
            f"so HAML's guarantee holds for the regularised return only approximately."
        )


@lru_cache(maxsize=64)
def checked(drift: Drift, compound_clip: float | None) -> DriftCheck:
    """`check_drift`, once for equal drifts."""
    return check_drift(drift, compound_clip=compound_clip)


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning(message)
