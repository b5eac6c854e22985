"""Families of action distributions on tensors, one for each kind of action space; exact KL and entropy.

A family is described by what it acts on; a member of it by a tensor of parameters (..., P). Leading
dimensions are free, and actions have the same: a batch of members is one tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

MASKED_LOGIT = -1e10
# Where tanh is inverted: float32 cannot tell larger numbers from 1 reliably.
SQUASHED_BOUND = 1 - 1e-6
LOG_2PI = math.log(2 * math.pi)

Action = Any
Drawn = tuple[Action, Tensor]


class Family(Protocol):
    """Distributions on one action space, as an update sees them."""

    def log_prob(self, parameters: Tensor, action: Action) -> Tensor:
        """(...), joint over the action's components."""
        ...

    def entropy(self, parameters: Tensor) -> Tensor:
        """(...) in nats, summed over the action's components."""
        ...

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """(...) KL(parameters ‖ other) in nats."""
        ...


class ActionFamily(Family, Protocol):
    """Distributions that can be acted on.

    Attributes:
        size: P, numbers that describe one member.
        mask_size: Entries of an action mask, 0 if these actions cannot be masked.
    """

    @property
    def size(self) -> int: ...

    @property
    def mask_size(self) -> int: ...

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        """The members without the actions that `mask` (..., mask_size), bool, forbids."""
        ...

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Drawn:
        """Actions (a tree of tensors) and their log-probabilities (...); torch's own generator if None."""
        ...

    def mode(self, parameters: Tensor) -> Drawn:
        """The most likely actions and their log-probabilities (...)."""
        ...


@dataclass(frozen=True)
class Gaussian:
    """Independent normal numbers; parameters are the means, then the log standard deviations.

    Attributes:
        dim: Numbers of an action (..., dim).
    """

    dim: int
    mask_size = 0

    @property
    def size(self) -> int:
        return 2 * self.dim

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        return parameters

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Drawn:
        mean, log_std = parameters.chunk(2, dim=-1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
        return mean + log_std.exp() * noise, self._log_density(noise, log_std)

    def mode(self, parameters: Tensor) -> Drawn:
        mean, log_std = parameters.chunk(2, dim=-1)
        return mean, self._log_density(torch.zeros_like(mean), log_std)

    def log_prob(self, parameters: Tensor, action: Action) -> Tensor:
        mean, log_std = parameters.chunk(2, dim=-1)
        return self._log_density((action - mean) * (-log_std).exp(), log_std)

    def entropy(self, parameters: Tensor) -> Tensor:
        return (parameters.chunk(2, dim=-1)[1] + 0.5 * (1 + LOG_2PI)).sum(-1)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        (mean, log_std), (mean2, log_std2) = parameters.chunk(2, dim=-1), other.chunk(2, dim=-1)
        difference = log_std2 - log_std
        scaled = (mean - mean2) * (-log_std2).exp()
        return (difference + 0.5 * ((-2 * difference).exp() + scaled.square() - 1)).sum(-1)

    @staticmethod
    def _log_density(standardised: Tensor, log_std: Tensor) -> Tensor:
        return -(0.5 * standardised.square() + log_std + 0.5 * LOG_2PI).sum(-1)


@dataclass(frozen=True)
class SquashedGaussian:
    """tanh of independent normal numbers: actions in (-1, 1); parameters as of `Gaussian`.

    KL does not change under tanh, so it is the normal numbers' own. The entropy has no closed form: it is
    integrated by Gauss-Hermite quadrature, one dimension at a time.

    Attributes:
        dim: Numbers of an action (..., dim).
    """

    dim: int
    mask_size = 0

    @property
    def size(self) -> int:
        return 2 * self.dim

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        return parameters

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Drawn:
        before, _ = Gaussian(self.dim).sample(parameters, generator)
        action = _squash(before)
        return action, self.log_prob(parameters, action)

    def mode(self, parameters: Tensor) -> Drawn:
        """The image of the normal numbers' mode, as is the custom; not where the density is highest."""
        action = _squash(parameters.chunk(2, dim=-1)[0])
        return action, self.log_prob(parameters, action)

    def log_prob(self, parameters: Tensor, action: Action) -> Tensor:
        before = action.clamp(-SQUASHED_BOUND, SQUASHED_BOUND).atanh()
        return Gaussian(self.dim).log_prob(parameters, before) - _log_slope(before).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        mean, log_std = parameters.chunk(2, dim=-1)
        nodes, weights = _hermite(mean)
        before = mean[..., None] + math.sqrt(2) * log_std.exp()[..., None] * nodes
        return Gaussian(self.dim).entropy(parameters) + (_log_slope(before) @ weights).sum(-1)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        return Gaussian(self.dim).kl(parameters, other)


def _squash(before: Tensor) -> Tensor:
    return before.tanh().clamp(-SQUASHED_BOUND, SQUASHED_BOUND)


def _log_slope(before: Tensor) -> Tensor:
    """log(1 - tanh²), without cancellation."""
    return 2 * (math.log(2) - before - softplus(-2 * before))


def _hermite(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights with Σ w f(√2 x) = E f(z), z standard normal."""
    nodes, weights = np.polynomial.hermite.hermgauss(48)
    return like.new_tensor(nodes), like.new_tensor(weights / math.sqrt(math.pi))


@dataclass(frozen=True)
class Categorical:
    """One of `n` choices; parameters are logits, of forbidden choices `MASKED_LOGIT`. Actions (...) int64."""

    n: int

    @property
    def size(self) -> int:
        return self.n

    @property
    def mask_size(self) -> int:
        return self.n

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        return parameters.masked_fill(~mask.bool(), MASKED_LOGIT)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Drawn:
        logp = parameters.log_softmax(-1)
        choices = logp.exp().reshape(-1, self.n)
        action = torch.multinomial(choices, 1, generator=generator).view(logp.shape[:-1])
        return action, _picked(logp, action)

    def mode(self, parameters: Tensor) -> Drawn:
        logp = parameters.log_softmax(-1)
        action = logp.argmax(-1)
        return action, _picked(logp, action)

    def log_prob(self, parameters: Tensor, action: Action) -> Tensor:
        return _picked(parameters.log_softmax(-1), action)

    def entropy(self, parameters: Tensor) -> Tensor:
        logp = parameters.log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        logp = parameters.log_softmax(-1)
        return (logp.exp() * (logp - other.log_softmax(-1))).sum(-1)


def _picked(logp: Tensor, action: Tensor) -> Tensor:
    return logp.gather(-1, action.long()[..., None]).squeeze(-1)


@dataclass(frozen=True)
class Bernoulli:
    """Independent switches; parameters are the logits of "on". Actions (..., n) int8.

    Attributes:
        n: Switches.
    """

    n: int
    mask_size = 0

    @property
    def size(self) -> int:
        return self.n

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        return parameters

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Drawn:
        action = torch.bernoulli(parameters.sigmoid(), generator=generator).to(torch.int8)
        return action, self.log_prob(parameters, action)

    def mode(self, parameters: Tensor) -> Drawn:
        action = (parameters > 0).to(torch.int8)
        return action, self.log_prob(parameters, action)

    def log_prob(self, parameters: Tensor, action: Action) -> Tensor:
        return logsigmoid(torch.where(action.bool(), parameters, -parameters)).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        on = parameters.sigmoid()
        return -(on * logsigmoid(parameters) + (1 - on) * logsigmoid(-parameters)).sum(-1)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        on = parameters.sigmoid()
        off_difference = logsigmoid(-parameters) - logsigmoid(-other)
        return (on * (logsigmoid(parameters) - logsigmoid(other)) + (1 - on) * off_difference).sum(-1)
