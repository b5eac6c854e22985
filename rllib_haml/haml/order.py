"""The order in which agents move. HAML asks that every permutation has positive probability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch


class Order(Protocol):
    def next(self, remaining: Sequence[str], generator: torch.Generator) -> str:
        """The one of `remaining` that moves now; drawn from `generator`, alike on every learner."""
        ...


@dataclass(frozen=True)
class RandomOrder:
    """Every permutation with equal probability."""

    def next(self, remaining: Sequence[str], generator: torch.Generator) -> str:
        draw = torch.randint(len(remaining), (), generator=generator, device=generator.device).item()
        return remaining[int(draw)]


@dataclass(frozen=True)
class FixedOrder:
    """Always the same order: outside the convergence theorem, useful as a control.

    Attributes:
        names: The policies, first mover first.

    Raises:
        ValueError: (from `next`) if a policy of the sweep is not among `names`.
    """

    names: tuple[str, ...]

    def next(self, remaining: Sequence[str], generator: torch.Generator) -> str:
        unknown = [name for name in remaining if name not in self.names]
        if unknown:
            raise ValueError(
                f"The fixed order {list(self.names)} does not name {unknown}: "
                f"list every policy that is trained, or use `order: random`."
            )
        return min(remaining, key=self.names.index)
