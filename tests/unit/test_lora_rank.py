"""Ranks that adapt, against numpy's singular values and enumeration."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from lora_teams import learnt, make_actor, make_batch, outputs, refactored

from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.lora import LoRA
from rllib_haml.modules.lora_config import LoRAConfig
from rllib_haml.modules.lora_rank import kept_ranks, spectrum, with_ranks


def team(count: int = 2, **keys: Any) -> list[Adapter]:
    backbone = make_actor(fcnet_hiddens=[6, 6])
    return [
        learnt(backbone, seed, **{"r": 4, "target_modules": ["network.1", "network.4"]} | keys)
        for seed in range(count)
    ]


def sizes(adapter: Adapter) -> dict[str, np.ndarray]:
    deltas = {name: x.detach().double().numpy() for name, x in adapter.lora.deltas().items()}
    return {name: np.linalg.svd(x, compute_uv=False) for name, x in deltas.items() if x.ndim == 2}


def ranks(adapter: Adapter) -> dict[str, int]:
    return {t.name: t.rank for t in adapter.lora.targets if t.rank is not None}


def adapted_ranks(adapters: list[Adapter], **limits: Any) -> list[LoRAConfig]:
    """Each adapter's configuration with the ranks that it is to keep."""
    kept = kept_ranks([adapter.lora for adapter in adapters], **limits)
    return [with_ranks(a.lora.config, ranks) for a, ranks in zip(adapters, kept, strict=True)]


def kept(configs: list[Any], adapters: list[Adapter]) -> list[dict[str, int]]:
    return [ranks(refactored(a, config)) for a, config in zip(adapters, configs, strict=True)]


def test_the_spectrum_from_the_factors_is_that_of_the_product() -> None:
    (adapter,) = team(1, modules_to_save=["network.7"], use_rslora=True)
    for target in adapter.lora.targets:
        if len(target.shape) == 2:
            got = spectrum(adapter.lora, target)
            expected = sizes(adapter)[target.name]
            np.testing.assert_allclose(got, expected[: len(got)], rtol=1e-5, atol=1e-6)
            assert not expected[len(got) :].max(initial=0) > 1e-5


@pytest.mark.parametrize("energy", [0.3, 0.8, 0.95, 1.0])
def test_the_least_ranks_that_keep_the_energy(energy: float) -> None:
    adapters = team()
    found = kept(adapted_ranks(adapters, energy=energy), adapters)
    for adapter, chosen in zip(adapters, found, strict=True):
        for name, rank in chosen.items():
            share = np.cumsum(sizes(adapter)[name] ** 2) / np.sum(sizes(adapter)[name] ** 2)
            assert share[rank - 1] >= energy - 1e-6
            assert rank == 1 or share[rank - 2] < energy
    if energy == 0.95:
        assert {1, 4}.isdisjoint(rank for chosen in found for rank in chosen.values()), "control"


def test_a_truncated_adapter_is_the_best_of_its_ranks() -> None:
    adapters = team()
    for adapter, config in zip(adapters, adapted_ranks(adapters, energy=0.7), strict=True):
        smaller = refactored(adapter, config)
        for target, old in zip(smaller.lora.targets, adapter.lora.targets, strict=True):
            difference = smaller.lora.deltas()[target.name] - adapter.lora.deltas()[target.name]
            left = difference.detach().double().norm().item()
            rest = sizes(adapter)[target.name][target.rank :] if target.rank else np.zeros(1)
            assert left == pytest.approx(np.linalg.norm(rest), rel=1e-3, abs=1e-5)
            assert target.scaling == pytest.approx(old.scaling, rel=1e-15)
        assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in adapter.parameters())


def test_all_energy_changes_no_policy() -> None:
    (adapter,) = team(1)
    (config,) = adapted_ranks([adapter], energy=1.0)
    batch = make_batch(adapter)
    torch.testing.assert_close(
        outputs(refactored(adapter, config), batch), outputs(adapter, batch), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("directions", [4, 5, 7, 9, 16])
def test_a_budget_is_spent_where_it_keeps_most(directions: int) -> None:
    """By enumeration of all ranks of two layers of two agents. A direction of each takes 12 numbers."""
    adapters = team(target_modules=["network.4"], modules_to_save=["network.7"])
    adapters += team(target_modules=["network.4"], modules_to_save=["network.7"], lora_alpha=1)
    dense = sum(t.num_parameters for a in adapters for t in a.lora.targets if t.rank is None)
    configs = adapted_ranks(adapters, energy=1.0, budget=dense + 12 * directions)
    chosen = [rank for found in kept(configs, adapters) for rank in found.values()]
    spectra = [sizes(a)["network.4.weight"][:4] ** 2 for a in adapters]

    def energy(option: Any) -> float:
        return sum(s[:rank].sum() for s, rank in zip(spectra, option, strict=True))

    options = [o for o in itertools.product(range(1, 5), repeat=4) if sum(o) <= directions]
    assert sum(chosen) == min(directions, 16)
    assert energy(chosen) == pytest.approx(max(map(energy, options)), rel=1e-5)
    assert len(set(map(energy, options))) > 1 or directions == 4


def test_a_budget_counts_the_trained_numbers_of_all_agents() -> None:
    """Layers of different widths, where a direction that is too dear is left for a cheaper one."""
    adapters = team(3)
    minimum = sum(sum(t.shape) if t.rank else t.num_parameters for a in adapters for t in a.lora.targets)
    for budget in (minimum, minimum + 20, minimum + 57, 10**6):
        configs = adapted_ranks(adapters, energy=1.0, budget=budget)
        spent = sum(
            p.numel() for a, c in zip(adapters, configs, strict=True) for p in refactored(a, c).parameters()
        )
        assert spent <= budget
        assert spent > budget - 11 or budget == 10**6
    with pytest.raises(ValueError, match=rf"budget={minimum - 1}: .* take {minimum} parameters"):
        adapted_ranks(adapters, energy=1.0, budget=minimum - 1)


def test_a_dear_direction_must_hold_more_than_a_cheap_one() -> None:
    """σ² of 10 and 9 in 8 numbers each go before 30 in 44; with room for both it is kept too."""
    base = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 40))
    lora = LoRA(base, LoRAConfig(r=3))
    spectra = {"0.weight": (100.0, 10.0, 9.0), "1.weight": (100.0, 30.0, 1e-3)}
    deltas = {name: torch.zeros(target.shape) for target in lora.targets for name in [target.name]}
    for name, energies in spectra.items():
        for k, energy in enumerate(energies):
            deltas[name][k, k] = energy**0.5
    lora.assign(deltas)
    for more, expected in ((8, [2, 1]), (16, [3, 1]), (44, [3, 1]), (60, [3, 2])):
        (kept,) = kept_ranks([lora], energy=1.0, budget=8 + 44 + more)
        assert [kept[target] for target in lora.targets] == expected


def test_ranks_adapt_again() -> None:
    (adapter,) = team(1, rank_pattern={"network.1": 3}, alpha_pattern={"1": 6.0})
    (first,) = adapted_ranks([adapter], energy=0.9)
    once = refactored(adapter, first)
    (second,) = adapted_ranks([once], energy=0.01)
    assert set(ranks(refactored(once, second)).values()) == {1}
    assert set(ranks(once).values()) != {1}


def unmoved(adapter: Adapter, how: str) -> Adapter:
    """Its differences say nothing: zero, by factors that cancel too, or rounding, or not finite."""
    with torch.no_grad():
        if how in ("at the start", "as PEFT starts"):
            adapter.start_from("zero")
        for target in adapter.lora.live_ranks():
            a, b = adapter.lora.factors(target)
            if how == "as PEFT starts":
                a.normal_()
                b.zero_()
            elif how == "cancelled":
                a[:], b[:, ::2], b[:, 1::2] = a[:1].clone(), 1.0, -1.0
            elif how == "rounding":
                b *= 1e-9
            elif how in ("nan", "inf"):
                a[0, 0] = float(how)
    return adapter


UNMOVED = ["at the start", "as PEFT starts", "cancelled", "rounding", "nan", "inf"]


@pytest.mark.parametrize("how", UNMOVED)
@pytest.mark.parametrize("energy", [0.01, 1.0])
def test_a_difference_that_says_nothing_is_not_cut(how: str, energy: float) -> None:
    moved, still = team()
    assert set(kept_ranks([unmoved(still, how).lora], energy=energy)[0].values()) == {4}
    first, second = kept_ranks([moved.lora, still.lora], energy=energy)
    assert set(second.values()) == {4}
    assert (set(first.values()) == {1}) == (energy == 0.01), "control: what moved is cut"


@pytest.mark.parametrize("how", UNMOVED)
def test_what_says_nothing_takes_one_direction_of_the_budget(how: str) -> None:
    """Those that moved share the rest as without it, whatever it keeps; later it is judged like them."""
    moved, still = team(2, target_modules=["network.4"])
    dense = sum(t.num_parameters for t in moved.lora.targets if t.rank is None)

    def of(*adapters: Adapter, directions: int) -> list[dict[Any, int]]:
        budget = len(adapters) * dense + 12 * directions
        return kept_ranks([adapter.lora for adapter in adapters], energy=1.0, budget=budget)

    both = of(moved, still, directions=4)
    assert sum(rank for ranks in both for rank in ranks.values()) == 4, "control: what moved is cut"
    (alone,) = of(moved, directions=3)
    assert list(alone.values()) == [3]
    unmoved(still, how)
    found, kept = of(moved, still, directions=4)
    assert found == alone
    assert list(kept.values()) == [4]
    with pytest.raises(ValueError, match=r"one direction for each layer"):
        of(moved, still, directions=1)


def test_layers_are_judged_one_by_one() -> None:
    (adapter,) = team(1)
    with torch.no_grad():
        adapter.lora.factors(next(t for t in adapter.lora.targets if t.name == "network.4.weight"))[1].zero_()
    (kept,) = kept_ranks([adapter.lora], energy=0.01)
    assert {t.name: rank for t, rank in kept.items()} == {"network.1.weight": 1, "network.4.weight": 4}


@pytest.mark.parametrize("energy", [0.0, -1.0, 1.1])
def test_energy_is_a_share(energy: float) -> None:
    with pytest.raises(ValueError, match=rf"energy={energy}: expected a share"):
        adapted_ranks(team(1), energy=energy)
