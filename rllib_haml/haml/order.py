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


@dataclass(frozen=True)
class SemiGreedyOrder:
    """The highest score and a uniform draw, in turn (A2PO, Wang et al. 2023, arXiv 2302.06205).

    A2PO scores an agent by its mean |Â / V|; where the team has one Â and one V, as here, all agents would
    tie, so the score is the root mean square of the agent's own objective's gradient (see `Order.next`).
    Some permutations never occur, so the order is outside HAML's convergence theorem; that no sweep lowers
    the return holds in any order.
    """

    def next(
        self, moved: Sequence[str], remaining: Sequence[str], scores: Scores, generator: torch.Generator
    ) -> str:
        if len(moved) % 2:
            return RandomOrder().next(moved, remaining, scores, generator)
        return max(remaining, key=scores().__getitem__)
