"""This package's action distributions as RLlib's, and RLlib's as this package's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import tree
from gymnasium import Space
from ray.rllib.core.distribution.distribution import Distribution
from ray.rllib.utils.annotations import override
from torch import Tensor

from rllib_haml.haml.families import ActionFamily


class FamilyDistribution(Distribution):
    """Members of `family` behind RLlib's interface; draws from torch's global generator.

    Args:
        parameters: (R, P).
    """

    family: ClassVar[Any]

    def __init__(self, parameters: Tensor):
        super().__init__()
        self.parameters = parameters

    @override(Distribution)
    def sample(self, *, sample_shape: Any = None, **kwargs: Any) -> Any:
        return self.family.sample(self._repeated(sample_shape))[0]

    @override(Distribution)
    def rsample(self, *, sample_shape: Any = None, **kwargs: Any) -> Any:
        """As `sample`, with gradients only where the family's draws have them (Gaussians)."""
        return self.sample(sample_shape=sample_shape)

    def _repeated(self, sample_shape: Any) -> Tensor:
        return self.parameters.expand(*(sample_shape or ()), *self.parameters.shape)

    @override(Distribution)
    def logp(self, value: Any, **kwargs: Any) -> Tensor:
        return self.family.log_prob(self.parameters, value)

    @override(Distribution)
    def entropy(self, **kwargs: Any) -> Tensor:
        return self.family.entropy(self.parameters)

    @override(Distribution)
    def kl(self, other: Distribution, **kwargs: Any) -> Tensor:
        return self.family.kl(self.parameters, _parameters(other))

    @staticmethod
    @override(Distribution)
    def required_input_dim(space: Space, **kwargs: Any) -> int:
        raise NotImplementedError("The head that makes the distribution knows its family's size.")

    @classmethod
    @override(Distribution)
    def from_logits(cls, logits: Any, **kwargs: Any) -> FamilyDistribution:
        return cls(logits)

    @override(Distribution)
    def to_deterministic(self) -> Any:
        return _Mode(self.family, self.parameters)


def _parameters(distribution: Any) -> Tensor:
    return distribution.parameters


@dataclass
class _Mode:
    """All probability on the modes; log-probabilities are 0, as of RLlib's deterministic distribution."""

    family: ActionFamily
    parameters: Tensor

    def sample(self, **kwargs: Any) -> Any:
        return self.family.mode(self.parameters)[0]

    def logp(self, value: Any, **kwargs: Any) -> Tensor:
        return self.parameters.new_zeros(self.parameters.shape[:-1])


def distribution_class(family: ActionFamily) -> type[FamilyDistribution]:
    """RLlib's view of `family`: a class, as RLModules name their distributions."""
    return type(f"{type(family).__name__}Distribution", (FamilyDistribution,), {"family": family})


class RLlibFamily:
    """The distributions of a user's own RLModule as a `Family`; RLlib's formulas.

    Args:
        kind: An RLlib distribution class.
    """

    def __init__(self, kind: type[Distribution]):
        self._kind = kind

    def log_prob(self, parameters: Tensor, action: Any) -> Tensor:
        dims = parameters.dim() - 1
        flat = tree.map_structure(lambda x: x.flatten(0, dims - 1), action)
        return self._of(parameters).logp(flat).view(parameters.shape[:-1])

    def entropy(self, parameters: Tensor) -> Tensor:
        return self._of(parameters).entropy().view(parameters.shape[:-1])

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        return self._of(parameters).kl(self._of(other)).view(parameters.shape[:-1])

    def _of(self, parameters: Tensor) -> Any:
        return self._kind.from_logits(parameters.flatten(0, -2))
