"""Families made of others: actions with several independent parts, and actions that are tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rllib_haml.haml.families import Action, ActionFamily, Categorical, Drawn


class Product:
    """Independent parts; parameters and masks are the parts' own, one after another.

    Actions are trees: dicts or tuples of the parts' actions.

    Args:
        parts: A dict or a sequence of families.
    """

    def __init__(self, parts: Mapping[str, ActionFamily] | Sequence[ActionFamily]):
        self._keys = list(parts) if isinstance(parts, Mapping) else None
        self.parts: list[ActionFamily] = list(parts.values()) if isinstance(parts, Mapping) else list(parts)
        self.size = sum(part.size for part in self.parts)
        self.mask_size = sum(part.mask_size for part in self.parts)
        self.squashes = any(part.squashes for part in self.parts)

    def __repr__(self) -> str:
        keys = range(len(self.parts)) if self._keys is None else self._keys
        return f"{type(self).__name__}({dict(zip(keys, self.parts, strict=True))})"

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        masks = mask.split([part.mask_size for part in self.parts], dim=-1)
        each = zip(self.parts, self.split(parameters), masks, strict=True)
        return torch.cat([part.masked(p, m) for part, p, m in each], dim=-1)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Drawn:
        each = zip(self.parts, self.split(parameters), strict=True)
        return self.together([part.sample(p, generator) for part, p in each])

    def mode(self, parameters: Tensor) -> Drawn:
        each = zip(self.parts, self.split(parameters), strict=True)
        return self.together([part.mode(p) for part, p in each])

    def log_prob(self, parameters: Tensor, action: Action) -> Tensor:
        each = zip(self.parts, self.split(parameters), self._components(action), strict=True)
        return torch.stack([part.log_prob(p, a) for part, p, a in each]).sum(0)

    def entropy(self, parameters: Tensor) -> Tensor:
        each = zip(self.parts, self.split(parameters), strict=True)
        return torch.stack([part.entropy(p) for part, p in each]).sum(0)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        each = zip(self.parts, self.split(parameters), self.split(other), strict=True)
        return torch.stack([part.kl(p, q) for part, p, q in each]).sum(0)

    def executed(self, drawn: Action) -> Action:
        if not self.squashes:
            return drawn
        each = zip(self.parts, self._components(drawn), strict=True)
        return self._tree([part.executed(action) for part, action in each])

    def drawn(self, executed: Action) -> Action:
        if not self.squashes:
            return executed
        each = zip(self.parts, self._components(executed), strict=True)
        return self._tree([part.drawn(action) for part, action in each])

    def split(self, parameters: Tensor) -> tuple[Tensor, ...]:
        """The parts' parameters (..., P_i)."""
        return parameters.split([part.size for part in self.parts], dim=-1)

    def _components(self, action: Action) -> list[Action]:
        return list(action) if self._keys is None else [action[key] for key in self._keys]

    def together(self, drawn: list[Drawn]) -> Drawn:
        """One action of the parts' actions, with the sum of their log-probabilities."""
        actions, logps = zip(*drawn, strict=True)
        return self._tree(actions), torch.stack(logps).sum(0)

    def _tree(self, actions: Sequence[Action]) -> Action:
        return tuple(actions) if self._keys is None else dict(zip(self._keys, actions, strict=True))


class MultiCategorical(Product):
    """Several choices at once, of `sizes` options each. Actions (..., len(sizes)) int64."""

    def __init__(self, sizes: Sequence[int]):
        super().__init__([Categorical(n) for n in sizes])

    def _components(self, action: Action) -> list[Action]:
        return list(action.unbind(-1))

    def together(self, drawn: list[Drawn]) -> Drawn:
        actions, logps = zip(*drawn, strict=True)
        return torch.stack(actions, dim=-1), torch.stack(logps).sum(0)


@dataclass(frozen=True)
class Shaped:
    """A family of vectors (..., n) whose actions are tables (..., *shape) of as many numbers.

    Attributes:
        vectors: The family, of n = Π shape components.
        shape: Of one action; () is a single number.
    """

    vectors: ActionFamily
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.vectors.size

    @property
    def mask_size(self) -> int:
        return self.vectors.mask_size

    @property
    def squashes(self) -> bool:
        return self.vectors.squashes

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        return self.vectors.masked(parameters, mask)

    def executed(self, drawn: Action) -> Action:
        return self.vectors.executed(drawn)

    def drawn(self, executed: Action) -> Action:
        return self.vectors.drawn(executed)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Drawn:
        return self._in_shape(self.vectors.sample(parameters, generator))

    def mode(self, parameters: Tensor) -> Drawn:
        return self._in_shape(self.vectors.mode(parameters))

    def log_prob(self, parameters: Tensor, action: Action) -> Tensor:
        return self.vectors.log_prob(parameters, action.reshape(*parameters.shape[:-1], -1))

    def entropy(self, parameters: Tensor) -> Tensor:
        return self.vectors.entropy(parameters)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        return self.vectors.kl(parameters, other)

    def _in_shape(self, drawn: Drawn) -> Drawn:
        action, logp = drawn
        return action.reshape(*logp.shape, *self.shape), logp
