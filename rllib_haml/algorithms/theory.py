"""Where a configuration leaves the conditions of HAML's guarantee of joint improvement."""

from __future__ import annotations

import logging
from typing import Any

from ray.cloudpickle import cloudpickle as pickle

from rllib_haml.haml import DriftCheck, check_drift
from rllib_haml.haml.check_drift import known

logger = logging.getLogger("rllib_haml")

_said: set[str] = set()
_checks: dict[tuple[bytes, float | None], DriftCheck] = {}


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
    if not (check := config.drift_check()).holds:
        _say_once(check.message)
    if config.order != "random" and len(config.team.members()) > 1:
        _say_once(
            f"order={config.order!r}: each update improves the team in any order, but only where every order "
            f"can be drawn (`random`) does HAML's theorem say that it converges to a Nash equilibrium."
        )
    if config.entropy_coeff:
        _say_once(
            f"entropy_coeff={config.entropy_coeff}: an entropy bonus has a gradient at the present policy, "
            f"so HAML's guarantee holds for the regularised return only approximately."
        )


def checked(config: Any) -> DriftCheck:
    """Whether the config's drift is one: a user's own is tried, once in a process."""
    drift, bound = config.make_drift(), config.compound_bound()
    key = (pickle.dumps(drift), bound)
    if key not in _checks:
        _checks[key] = known(drift, bound) or check_drift(drift, compound_clip=bound)
    return _checks[key]


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        logger.warning(message)
