"""Expectations without sampling: against enumeration, moments and the families' own entropies."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import tree
from haml_policies import apart
from torch import Tensor

from rllib_haml.haml import (
    Bernoulli,
    Categorical,
    Gaussian,
    MultiCategorical,
    Product,
    SquashedGaussian,
)
from rllib_haml.haml.integrate import nodes
from rllib_haml.haml.products import Shaped

FAMILIES: list[Any] = [
    Categorical(4),
    Bernoulli(3),
    MultiCategorical([2, 3]),
    Gaussian(2),
    SquashedGaussian(2),
    Product({"move": Gaussian(1), "say": Product([Categorical(3), Bernoulli(1)])}),
    Shaped(Gaussian(2), (2, 1)),
]


def member(family: Any) -> Tensor:
    return (
        0.5 * torch.randn(2, family.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        - 0.5
    )


def log_prob(family: Any, parameters: Tensor, actions: Any, log_weight: Tensor) -> Tensor:
    return family.log_prob(parameters[:, None].expand(*log_weight.shape, -1), actions)


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_weights_sum_to_one_and_information_to_the_entropy(family: Any) -> None:
    """Also Σ w q/p = 1 and Σ w log(p/q) = KL(p ‖ q), for a q nearby; not for the weights of q."""
    here = member(family)
    there = here + 0.3 * torch.linspace(-1, 1, family.size, dtype=torch.float64)
    actions, log_weight = nodes(family, here)
    weight = log_weight.exp()
    logp, logq = (log_prob(family, p, actions, log_weight) for p in (here, there))
    assert apart(weight.sum(-1), 1.0) < 1e-12
    information = -logp
    if family.squashes:  # of what is done
        information = information + torch.log1p(-actions.tanh().square()).sum(-1)
    assert apart((weight * information).sum(-1), family.entropy(here)) < 1e-6
    assert apart((weight * (logq - logp).exp()).sum(-1), 1.0) < 1e-6
    assert apart((weight * (logp - logq)).sum(-1), family.kl(here, there)) < 1e-6
    _, other = nodes(family, there)
    if not torch.equal(other, log_weight):
        assert apart((other.exp() * (logp - logq)).sum(-1), family.kl(here, there)) > 1e-3


def test_discrete_actions_are_enumerated() -> None:
    """Each once, with its probability; those that a mask forbids with none."""
    family = MultiCategorical([2, 3])
    mask = torch.tensor([[True, True, True, False, True]] * 2)
    actions, log_weight = nodes(family, family.masked(member(family), mask))
    assert actions[0].tolist() == [list(pair) for pair in itertools.product(range(2), range(3))]
    assert (log_weight[:, actions[0, :, 1] == 1].exp() == 0).all()
    assert apart(log_weight.exp().sum(-1), 1.0) < 1e-12


def test_switches_are_off_or_on() -> None:
    actions, _ = nodes(Bernoulli(2), member(Bernoulli(2)))
    assert actions.dtype == torch.int8
    assert actions[0].tolist() == actions[-1].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_gaussian_moments() -> None:
    """E x = μ, E (x − μ)² = σ², E (x − μ)⁴ = 3 σ⁴, each dimension by itself."""
    parameters = member(Gaussian(2))
    actions, log_weight = nodes(Gaussian(2), parameters)
    mean, log_std = parameters[:, None].chunk(2, dim=-1)
    central = (actions - mean) / log_std.exp()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert apart((log_weight.exp()[..., None] * central**power).sum(1), float(moment)) < 1e-10
    assert apart((log_weight.exp() * central.prod(-1)).sum(1), 0.0) < 1e-12


def test_trees_have_the_families_structure() -> None:
    """Of the same leaves, dtypes and trailing shapes as a sample's."""
    for family in FAMILIES:
        actions, log_weight = nodes(family, member(family))
        drawn, _ = family.sample(member(family))
        tree.assert_same_structure(actions, drawn)
        for found, like in zip(tree.flatten(actions), tree.flatten(drawn), strict=True):
            assert found.shape == (2, log_weight.shape[1], *like.shape[1:])
            assert found.dtype == like.dtype


def test_a_strange_family_is_named() -> None:
    with pytest.raises(TypeError, match=r"array.*expected a family"):
        nodes(np.zeros(2), torch.zeros(1, 2))


def test_a_grid_too_large_is_refused_before_it_is_built() -> None:
    with pytest.raises(ValueError, match=r"1,073,741,824 combinations.*Gaussian\(2\)"):
        nodes(Gaussian(6), torch.zeros(1, 12))
