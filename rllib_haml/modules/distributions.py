"""This package's action distributions as RLlib's, and RLlib's as this package's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import tree
from gymnasium import Space
from ray.rllib.core.distribution.distribution import Distribution
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.annotations import override
from torch import Tensor

from rllib_haml.haml.families import ActionFamily


class FamilyDistribution(Distribution):
    """Members of `family` behind RLlib's interface; draws from torch's global generator.

    Samples and their log-probabilities are the family's: of what is drawn, before a squash.

    Args:
        parameters: (R, P).
    """

    family: ClassVar[Any]

    def __init__(self, parameters: Tensor):
        super().__init__()
        self.parameters = parameters

    @override(Distribution)
    def sample(self, *, sample_shape: Any = None, **kwargs: Any) -> Any:
        return self._told(self.family.sample(self._repeated(sample_shape))[0])

    @override(Distribution)
    def rsample(self, *, sample_shape: Any = None, **kwargs: Any) -> Any:
        """As `sample`, with gradients only where the family's draws have them (Gaussians)."""
        return self.sample(sample_shape=sample_shape)

    def _told(self, drawn: Any) -> Any:
        """What samples are, of what was drawn."""
        return drawn

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
        return _Mode(self)


class ExecutedDistribution(FamilyDistribution):
    """The same, but its samples are what is done: on the policy's scale, after the squash.

    `logp` takes such an action, and gives the log-probability of what it was drawn as.
    """

    @override(FamilyDistribution)
    def _told(self, drawn: Any) -> Any:
        return self.family.executed(drawn)

    @override(FamilyDistribution)
    def logp(self, value: Any, **kwargs: Any) -> Tensor:
        return self.family.log_prob(self.parameters, self.family.drawn(value))


def _parameters(distribution: Any) -> Tensor:
    return distribution.parameters


@dataclass
class _Mode:
    """All probability on the modes; log-probabilities are 0, as of RLlib's deterministic distribution."""

    distribution: FamilyDistribution

    def sample(self, **kwargs: Any) -> Any:
        distribution = self.distribution
        return distribution._told(distribution.family.mode(distribution.parameters)[0])

    def logp(self, value: Any, **kwargs: Any) -> Tensor:
        parameters = self.distribution.parameters
        return parameters.new_zeros(parameters.shape[:-1])


def distribution_class(family: ActionFamily, *, executed: bool = False) -> type[FamilyDistribution]:
    """RLlib's view of `family`: a class, as RLModules name their distributions.

    Args:
        executed: Its samples are what is done, not what is drawn.
    """
    base = ExecutedDistribution if executed and family.squashes else FamilyDistribution
    made: Any = type(f"{type(family).__name__}Distribution", (base,), {"family": family})
    return made


def squashing_family(module: RLModule) -> ActionFamily | None:
    """The family of a policy's actions, if it squashes what it draws on the way to the environment."""
    kind = module.unwrapped().action_dist_cls
    if kind is None or not issubclass(kind, FamilyDistribution):
        return None
    return kind.family if kind.family.squashes else None


def recorded_class(module: RLModule, explore: bool) -> Any:
    """The distribution whose samples a sampler records: what is drawn, with or without exploration."""
    if explore or squashing_family(module) is not None:
        return module.get_exploration_action_dist_cls()
    return module.get_inference_action_dist_cls()


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
