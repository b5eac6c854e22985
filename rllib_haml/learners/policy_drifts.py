"""The policies' drifts, some of which adapt from update to update."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.utils.typing import StateDict

from rllib_haml.haml import Drift

DRIFTS, AT_FIRST = "drifts", "drifts_at_first"


class PolicyDrifts(dict[str, Drift]):
    """Each policy's own drift by the policy's name; those that are torch modules have a state.

    Args:
        made: One given as an object may be several policies': each gets a copy.
        device: The learner's.
    """

    def __init__(self, made: Mapping[str, Drift], device: Any):
        own = {name: copy.deepcopy(drift) for name, drift in made.items()}
        super().__init__({k: d.to(device) if isinstance(d, torch.nn.Module) else d for k, d in own.items()})
        self._at_first = self._states()

    def get_state(self) -> StateDict:
        """What they have become, and what they were made as."""
        return {DRIFTS: self._states(), AT_FIRST: self._at_first}

    def set_state(self, state: StateDict) -> None:
        """Goes on from `get_state` where drifts were made as these are; others, which the user has given
        since, begin."""
        then = state.get(AT_FIRST, self._at_first)  # older checkpoints do not have it
        for name, own in self._at_first.items():
            goes_on = name in state.get(DRIFTS, {}) and _same(own, then.get(name, {}))
            values = state[DRIFTS][name] if goes_on else own
            drift: Any = self[name]
            drift.load_state_dict({key: torch.as_tensor(value) for key, value in values.items()})

    def _states(self) -> dict[str, dict[str, np.ndarray]]:
        return {
            name: {key: value.cpu().numpy().copy() for key, value in drift.state_dict().items()}
            for name, drift in self.items()
            if isinstance(drift, torch.nn.Module)
        }


def _same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)
