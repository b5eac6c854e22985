"""What an episode came to beside its return (a battle won, a goal reached), as environments tell it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from rllib_haml._typing import AgentID
from rllib_haml.sampling.faults import EnvironmentFault

# Under this key the infos of an episode's last step tell it, and results its mean over episodes.
OUTCOME, OUTCOME_MEAN = "outcome", "outcome_mean"


def outcome_of(infos: Mapping[AgentID, Any]) -> dict[str, float]:
    """The outcome that the infos of an episode's last step tell: a number per name, {} if none does.

    It is the team's: any agent may tell it, and those who tell the same name must tell the same number.

    Raises:
        EnvironmentFault: Two agents disagree, or what one tells is no mapping of names to finite numbers.
    """
    told: dict[str, float] = {}
    for agent, info in infos.items():
        for name, value in _entries(agent, (info or {}).get(OUTCOME, {})):
            if told.setdefault(name, value) != value:
                raise EnvironmentFault(
                    f"its info tells the outcome {name!r} as {value:g}, another agent's as {told[name]:g}; "
                    f"expected one number for the whole team",
                    agent=agent,
                )
    return told


def _entries(agent: AgentID, outcome: Any) -> Iterable[tuple[str, float]]:
    if not isinstance(outcome, Mapping):
        raise EnvironmentFault(
            f"its info tells the outcome {outcome!r}, expected named numbers such as {{'win': 1.0}}",
            agent=agent,
        )
    for name, value in outcome.items():
        scalar = value.item() if isinstance(value, (np.generic, np.ndarray)) and value.size == 1 else value
        if not isinstance(name, str) or not isinstance(scalar, Real) or not math.isfinite(scalar):
            raise EnvironmentFault(
                f"its info tells the outcome {name!r} as {value!r}, expected a finite number under a name",
                agent=agent,
            )
        yield name, float(scalar)


def mean_outcomes(outcomes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Each name's mean over the episodes that told it."""
    values: dict[str, list[float]] = {}
    for outcome in outcomes:
        for name, value in outcome.items():
            values.setdefault(name, []).append(value)
    return {name: float(np.mean(told)) for name, told in values.items()}
