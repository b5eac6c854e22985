"""The order in which agents move. HAML asks that every permutation has positive probability."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

Scores = Callable[[], Mapping[str, float]]


class Order(Protocol):
    def next(
        self, moved: Sequence[str], remaining: Sequence[str], scores: Scores, generator: torch.Generator
    ) -> str:
        """Who moves now.

        Args:
            moved: Who has, first mover first.
            remaining: Who has not, in alphabetical order.
            scores: Computes how much each of `remaining` has to gain: the root mean square, over its
                parameters, of the gradient of its objective at its present policy. As dear as a gradient
                step for each, so called only if needed, and then on every learner.
            generator: The source of all randomness, alike on every learner.
        """
        ...


@dataclass(frozen=True)
class RandomOrder:
    """Every permutation with equal probability."""

    def next(
        self, moved: Sequence[str], remaining: Sequence[str], scores: Scores, generator: torch.Generator
    ) -> str:
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

    def next(
        self, moved: Sequence[str], remaining: Sequence[str], scores: Scores, generator: torch.Generator
    ) -> str:
        unknown = [name for name in remaining if name not in self.names]
        if unknown:
            raise ValueError(
                f"The fixed order {list(self.names)} does not name {unknown}: "
                f"list every policy that is trained, or use `order: random`."
            )
        return min(remaining, key=self.names.index)
