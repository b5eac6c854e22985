"""Families of action distributions on tensors, one for each kind of action space; exact KL and entropy.

A family is described by what it acts on; a member of it by a tensor of parameters (..., P). Leading
dimensions are free, and actions have the same: a batch of members is one tensor. Actions are what is drawn;
`executed` says what is done of it, which is the same but for `SquashedGaussian`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rllib_haml.haml.tanh_normal import expected_log_slope

MASKED_LOGIT = -1e10
LOG_2PI = math.log(2 * math.pi)

Action = Any
Drawn = tuple[Action, Tensor]


class Family(Protocol):
    """Distributions on one action space, as an update sees them."""

    def log_prob(self, parameters: Tensor, action: Action) -> Tensor:
        """(...) of what was drawn, joint over the action's components."""
        ...

    def entropy(self, parameters: Tensor) -> Tensor:
        """(...) in nats, of what is done, summed over the action's components."""
        ...

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """(...) KL(parameters ‖ other) in nats."""
        ...


class ActionFamily(Family, Protocol):
    """Distributions that can be acted on.

    Attributes:
        size: P, numbers that describe one member.
        mask_size: Entries of an action mask, 0 if these actions cannot be masked.
        squashes: Whether what is done is not what is drawn.
    """

    @property
    def size(self) -> int: ...

    @property
    def mask_size(self) -> int: ...

    @property
    def squashes(self) -> bool: ...

    def masked(self, parameters: Tensor, mask: Tensor) -> Tensor:
        """The members without the actions that `mask` (..., mask_size), bool, forbids."""
        ...

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Drawn:
        """Actions (a tree of tensors) and their log-probabilities (...); torch's own generator if None."""
        ...

    def mode(self, parameters: Tensor) -> Drawn:
        """The most likely actions and their log-probabilities (...)."""
        ...

    def executed(self, drawn: Action) -> Action:
        """The action, on the policy's scale, that is done of what was drawn; of arrays of numpy, too."""
        ...

    def drawn(self, executed: Action) -> Action:
        """What that action is drawn as."""
        ...


class _DoneAsDrawn:
    squashes = False

    def executed(self, drawn: Action) -> Action:
        return drawn

    def drawn(self, executed: Action) -> Action:
        return executed


@dataclass(frozen=True)
class Gaussian(_DoneAsDrawn):
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
class SquashedGaussian(Gaussian):
    """Normal numbers whose tanh is acted with, in (-1, 1); parameters as of `Gaussian`.

    What is drawn, kept, and given a log-probability is the normal number: in floating point its tanh is soon
    ±1, and then tells nothing of it. Ratios and KL do not change under tanh, so they are the normal numbers'
    own, exactly. Entropy does, and is that of what is acted with, E[-log_prob + log(1 - tanh²)]. The mode is
    the normal numbers', as is the custom: its tanh is not where actions are densest.
    """

    squashes = True

    def executed(self, drawn: Action) -> Action:
        return drawn.tanh() if isinstance(drawn, Tensor) else np.tanh(drawn)

    def drawn(self, executed: Action) -> Action:
        """Of ±1, from which it cannot be told, that of the nearest number inside."""
        if isinstance(executed, Tensor):
            bound = 1 - torch.finfo(executed.dtype).eps / 2
            return executed.clamp(-bound, bound).atanh()
        bound = 1 - np.finfo(executed.dtype).eps / 2
        return np.arctanh(executed.clip(-bound, bound))

    def entropy(self, parameters: Tensor) -> Tensor:
        return super().entropy(parameters) + expected_log_slope(*parameters.chunk(2, dim=-1)).sum(-1)


@dataclass(frozen=True)
class Categorical(_DoneAsDrawn):
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
class Bernoulli(_DoneAsDrawn):
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
