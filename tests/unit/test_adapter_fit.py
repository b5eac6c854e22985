"""An adapter that takes over another's policy, in its own factors or not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lora_teams import learnt, make_actor, make_adapter, make_batch, outputs

from rllib_haml.modules.adapter_fit import adopt

LINEARS = ["network.1", "network.4", "network.7"]


def state(adapter: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in adapter.state_dict().items()}


def test_equal_factors_are_taken_bit_for_bit() -> None:
    backbone = make_actor()
    adapter, given = learnt(backbone, 1), learnt(backbone, 2)
    adopt(adapter, given)
    for name, value in state(given).items():
        assert torch.equal(adapter.state_dict()[name], value)


@pytest.mark.parametrize(
    "own, other",
    [
        ({"r": 4}, {"r": 2}),
        ({"r": 2, "lora_alpha": 7}, {"r": 2, "lora_alpha": 3}),
        ({"full_rank_policy": "dense", "r": 10}, {"r": 2}),
        ({"modules_to_save": ["network.4"]}, {"target_modules": LINEARS[1:]}),
        ({"bias": "all"}, {"target_modules": LINEARS[:1], "adapt_log_std": False}),
    ],
)
def test_other_factors_express_the_same_policy(own: dict[str, Any], other: dict[str, Any]) -> None:
    backbone = make_actor()
    adapter, given, batch = learnt(backbone, 1, **own), learnt(backbone, 2, **other), make_batch(backbone)
    assert (outputs(adapter, batch) - outputs(given, batch)).abs().max() > 1e-2
    adopt(adapter, given)
    torch.testing.assert_close(outputs(adapter, batch), outputs(given, batch), rtol=1e-4, atol=1e-5)
    for rank in adapter.lora.live_ranks().items():
        assert rank[0].rank == rank[1], "what the policy does not need can be learnt"


@pytest.mark.parametrize(
    "own, other, message",
    [
        ({"r": 2}, {"r": 4}, r"network\.1\.weight needs rank 4 and has 2 \(r, or rank_pattern"),
        ({"target_modules": LINEARS[1:]}, {}, r"network\.1\.weight is not adapted here \(target_modules\)"),
        ({}, {"bias": "all"}, r"network\.1\.bias is not adapted here \(bias\)"),
        ({"adapt_log_std": False}, {}, r"head\.log_std is not adapted here \(adapt_log_std\)"),
        ({}, {"modules_to_save": ["network.0"]}, r"network\.0\.weight is not adapted here"),
    ],
)
def test_what_cannot_be_expressed_changes_nothing(
    own: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    backbone = make_actor()
    adapter, given = learnt(backbone, 1, **own), learnt(backbone, 2, **other)
    before = state(adapter)
    with pytest.raises(ValueError, match=message):
        adopt(adapter, given)
    assert all(torch.equal(adapter.state_dict()[name], value) for name, value in before.items())


def test_a_rank_that_is_there_in_name_only_needs_no_room() -> None:
    """A new adapter of rank 4 differs in nothing; one whose third and fourth direction repeat has rank 2."""
    backbone = make_actor()
    adapter, given, batch = learnt(backbone, 1), make_adapter(backbone, r=4), make_batch(backbone)
    adopt(adapter, given)
    assert torch.equal(outputs(adapter, batch), outputs(backbone, batch))
    given = learnt(backbone, 2, r=4, rank_pattern={"network.7": 2})
    with torch.no_grad():
        for target in given.lora.targets:
            if target.rank == 4:
                a, _ = given.lora.factors(target)
                a[2:] = 2 * a[:2]
    adopt(adapter, given)
    torch.testing.assert_close(outputs(adapter, batch), outputs(given, batch), rtol=1e-4, atol=1e-5)
