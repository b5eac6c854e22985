"""How often each module's update was not applied because it was not finite, and why."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

from torch import Tensor

from rllib_haml.haml import NotFinite

NUM_UPDATES_SKIPPED_LIFETIME = "num_updates_skipped_lifetime"
NUM_UPDATES_SKIPPED_IN_A_ROW = "num_updates_skipped_in_a_row"


class SkippedUpdates:
    """The counts of one learner; all learners have the same.

    Args:
        modules: By name; they lend their tensors' names to what is said.

    Attributes:
        causes: Per module whose last update was skipped what was not finite.
    """

    def __init__(self, modules: Any):
        self._modules = modules
        self._lifetime: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()
        self.causes: dict[str, str] = {}

    def count(self, module_id: str, fault: NotFinite | None) -> dict[str, int]:
        """Takes in one update, skipped if there was a `fault`; returns the module's metrics."""
        if fault is None:
            self._in_a_row[module_id] = 0
            self.causes.pop(module_id, None)
        else:
            self._lifetime[module_id] += 1
            self._in_a_row[module_id] += 1
            self.causes[module_id] = self._say(fault)
        return {
            NUM_UPDATES_SKIPPED_LIFETIME: self._lifetime[module_id],
            NUM_UPDATES_SKIPPED_IN_A_ROW: self._in_a_row[module_id],
        }

    def _say(self, fault: NotFinite) -> str:
        if fault.parameter is None:
            return str(fault)
        return f"the {fault.what} of {self._name(fault.parameter)} is not finite"

    def _name(self, tensor: Tensor) -> str:
        for module_id, module in self._modules.items():
            for name, own in chain(module.named_parameters(), module.named_buffers()):
                if own is tensor:
                    return f"{module_id}.{name}"
        return f"a tensor of shape {tuple(tensor.shape)}"

    def get_state(self) -> dict[str, int]:
        """The lifetime counts; a continued run gets its patience back."""
        return dict(self._lifetime)

    def set_state(self, state: dict[str, int]) -> None:
        self._lifetime = Counter(state)
        self._in_a_row.clear()
        self.causes.clear()
