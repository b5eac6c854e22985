"""KL where it has gone wrong elsewhere: its weights, rare actions, masks in single precision."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from haml_policies import Network, NetworkPolicy
from haml_trust_region import mirror_step

from rllib_haml.haml import Categorical, KLBall, MultiCategorical, Product


def test_kl_weighs_each_action_with_its_probability() -> None:
    """softmax[2, 0, −6] and softmax[2, 0, −5]: 2.12e-4; an unweighted sum of r − 1 − log r would be 0.717."""
    p, q = torch.tensor([2.0, 0.0, -6.0]).double(), torch.tensor([2.0, 0.0, -5.0]).double()
    kl = Categorical(3).kl(p, q).item()
    assert kl == pytest.approx(2.12e-4, rel=2e-3)
    ratio = np.exp((q.log_softmax(0) - p.log_softmax(0)).numpy())
    assert (ratio - 1 - np.log(ratio)).sum() == pytest.approx(0.717, abs=2e-3)
    both = Product([Categorical(3), Categorical(3)]).kl(torch.cat([p, q]), torch.cat([q, q]))
    assert both.item() == pytest.approx(kl)


@pytest.mark.parametrize("family", [Categorical(4), MultiCategorical([4, 2])], ids=repr)
def test_masked_logits_in_single_precision(family: Categorical | MultiCategorical) -> None:
    """Values, gradients and second gradients of log-probability, entropy and KL are finite.

    Also where one choice alone is left, and at the present policy, where the KL is 0 with its gradient.
    """
    mask = torch.ones(3, family.mask_size, dtype=torch.bool)
    mask[1, [1, 3]] = False
    mask[2, 1:4] = False
    logits = torch.randn(3, family.size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    members = family.masked(logits, mask)
    fixed = members.detach()
    action = family.mode(fixed)[0]
    for value, zero in (
        (family.log_prob(members, action).sum(), False),
        (family.entropy(members).sum(), False),
        (family.kl(fixed, members).sum(), True),
        (family.kl(members, fixed).sum(), True),
        (family.kl(fixed + torch.where(mask, 0.5 * torch.randn(mask.shape), 0), members).sum(), False),
    ):
        (first,) = torch.autograd.grad(value, logits, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum() + first.sum(), logits, retain_graph=True)
        assert all(x.isfinite().all() for x in (value, first, second))
        assert (first[~mask] == 0).all()
        if zero:
            assert value.abs() < 1e-6
            assert first.abs().max() < 1e-6


def test_trust_region_on_masked_logits_in_single_precision() -> None:
    """A step is accepted and lands near the double-precision one's KL."""
    kl = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        network, obs = Network(5, 4, gaussian=False).to(dtype), torch.randn(40, 5).to(dtype)
        mask = torch.rand(40, 4) < 0.5
        mask[:, 1] = True
        policy = NetworkPolicy(network, obs, torch.ones(40, 1, dtype=torch.int64), action_mask=mask)
        step = mirror_step(policy, torch.randn(40).double().numpy())
        single = replace(step, factor=step.factor.to(dtype), advantage=step.advantage.to(dtype))
        report = KLBall(0.01).maximise(single)
        assert report["line_search_accepted"] == 1
        kl.append(report["kl"].item())
    assert kl[0] == pytest.approx(kl[1], rel=1e-2)
    assert 0 < kl[0] <= 0.01
