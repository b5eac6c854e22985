"""Expectations over the actions of a policy, without sampling: enumeration and Gauss-Hermite quadrature."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllib_haml.haml.families import Action, Bernoulli, Categorical, Drawn, Gaussian
from rllib_haml.haml.products import Product, Shaped

LARGEST_GRID = 2**20


@singledispatch
def nodes(family: Any, parameters: Tensor) -> Drawn:
    """Actions and log weights with Σ_r exp(log_weight[k, r]) f(action[k, r]) = E f(action).

    Exact for discrete parts; for each Gaussian number exact if f is a polynomial of a degree below 64.

    Args:
        family: Of this package.
        parameters: (K, P), of K members.

    Returns:
        Actions (a tree of (K, R, ...)) and log weights (K, R).

    Raises:
        TypeError: If the family is not of this package.
        ValueError: If there are more than `LARGEST_GRID` actions to look at.
    """
    raise TypeError(
        f"Cannot integrate over the actions of {family!r}: expected a family of rllib_haml.haml, "
        f"such as Categorical(4) or Gaussian(2)."
    )


@nodes.register
def _(family: Categorical, parameters: Tensor) -> Drawn:
    logp = parameters.log_softmax(-1)
    return torch.arange(family.n, device=logp.device).expand(logp.shape), logp


@nodes.register
def _(family: Bernoulli, parameters: Tensor) -> Drawn:
    switches = torch.tensor([0, 1], dtype=torch.int8, device=parameters.device)
    actions = _grid([switches] * family.n).expand(len(parameters), -1, -1)
    return actions, family.log_prob(parameters[:, None], actions)


@nodes.register
def _(family: Gaussian, parameters: Tensor) -> Drawn:
    mean, log_std = parameters[:, None].chunk(2, dim=-1)
    numbers, weights = (parameters.new_tensor(x) for x in np.polynomial.hermite_e.hermegauss(32))
    log_weights = _grid([(weights / weights.sum()).log()] * family.dim).sum(-1)
    return mean + log_std.exp() * _grid([numbers] * family.dim), log_weights.expand(len(mean), -1)


@nodes.register
def _(family: Product, parameters: Tensor) -> Drawn:
    parts = [nodes(part, p) for part, p in zip(family.parts, family.split(parameters), strict=True)]
    choice = _grid([torch.arange(w.shape[-1], device=w.device) for _, w in parts]).unbind(-1)
    return family.together([(_picked(a, i), w[:, i]) for (a, w), i in zip(parts, choice, strict=True)])


@nodes.register
def _(family: Shaped, parameters: Tensor) -> Drawn:
    actions, log_weights = nodes(family.vectors, parameters)
    return actions.reshape(*log_weights.shape, *family.shape), log_weights


def _grid(axes: list[Tensor]) -> Tensor:
    """(R, len(axes)), all combinations."""
    size = math.prod(len(axis) for axis in axes)
    if size > LARGEST_GRID:
        raise ValueError(
            f"Integrating over these actions takes {size:,} combinations, more than {LARGEST_GRID:,}: take "
            f"a smaller family of the same kind, such as Gaussian(2). A drift does not know the difference."
        )
    return torch.cartesian_prod(*axes).view(-1, len(axes))


def _picked(action: Action, index: Tensor) -> Action:
    """The columns `index` of every tensor (K, R, ...) of the tree."""
    if isinstance(action, dict):
        return {key: _picked(part, index) for key, part in action.items()}
    if isinstance(action, tuple):
        return tuple(_picked(part, index) for part in action)
    return action[:, index]
