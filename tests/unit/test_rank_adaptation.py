"""Ranks that fall while adapters train: what is kept, what is dropped for ever, and what costs what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_teams import learnt, make_actor, make_adapter, make_batch, outputs

from rllib_haml.learners import rank_adaptation
from rllib_haml.learners.rank_adaptation import RankAdaptation
from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.adapter_drift import audit_adapters
from rllib_haml.modules.adapter_files import export_adapter, import_adapter
from rllib_haml.modules.adapter_fit import trimmed

LAYER = "network.4.weight"


def target_of(adapter: Adapter, name: str = LAYER) -> Any:
    return next(target for target in adapter.lora.targets if target.name == name)


def delta_of(adapter: Adapter, name: str = LAYER) -> np.ndarray:
    return adapter.lora.deltas()[name].detach().double().numpy()


def train(adapter: Adapter, steps: int = 10) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.02, weight_decay=0.1)
    batch = make_batch(adapter)
    for _ in range(steps):
        optimizer.zero_grad()
        (outputs(adapter, batch) - 1).square().sum().backward()
        optimizer.step()
    return optimizer


def apply(settings: RankAdaptation, **adapters: Adapter) -> dict[str, torch.optim.Optimizer]:
    """After a few steps of training."""
    optimizers = {name: train(adapter) for name, adapter in adapters.items()}
    settings.apply(adapters, optimizers)
    return optimizers


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_what_is_kept_is_the_best_of_its_rank(rank: int) -> None:
    adapter = learnt(make_actor(), r=4)
    target, before = target_of(adapter), delta_of(adapter)
    adapter.lora.truncate(target, rank)
    left, sizes, right = np.linalg.svd(before)
    nearest = left[:, :rank] * sizes[:rank] @ right[:rank]
    np.testing.assert_allclose(delta_of(adapter), nearest, rtol=1e-4, atol=1e-5)
    assert np.abs(before - nearest).max() > 1e-2, "control"
    assert adapter.lora.live(target).tolist() == [True] * rank + [False] * (4 - rank)


def test_a_dropped_direction_never_comes_back() -> None:
    """Under Adam with weight decay; the kept ones move, and so does the control that was only reset."""
    adapter, target = learnt(make_actor(), r=4), target_of(learnt(make_actor(), r=4))
    adapter.lora.truncate(target, 2)
    a, b = (factor.detach().clone() for factor in adapter.lora.factors(target))
    train(adapter)
    after_a, after_b = (factor.detach() for factor in adapter.lora.factors(target))
    assert not after_a[2:].any()
    assert not after_b[:, 2:].any()
    assert not torch.equal(a[:2], after_a[:2])
    assert not torch.equal(b[:, :2], after_b[:, :2])
    reset = make_adapter(make_actor(), r=4)
    assert not reset.lora.factors(target)[0].any()
    train(reset)
    assert reset.lora.factors(target)[0].any(1).all(), "control: directions that are zero in one factor learn"


@pytest.mark.parametrize("init", ["lorasa", True, "gaussian", "orthogonal"])
@pytest.mark.parametrize("budget", [None, 400])
def test_an_adapter_that_has_not_moved_is_not_cut(init: Any, budget: int | None) -> None:
    """Nor are its moments forgotten; beside it one that moved is cut, and so is it once it has moved."""
    backbone = make_actor()
    new, moved = make_adapter(backbone, r=4, init_lora_weights=init), learnt(backbone, r=4)
    start = {name: value.clone() for name, value in new.state_dict().items()}
    settings = RankAdaptation(energy=0.5, budget=budget)
    settings.apply({"new": new, "moved": moved}, {"new": train(new, 0), "moved": train(moved)})
    assert all(torch.equal(value, start[name]) for name, value in new.state_dict().items())
    assert all(rank == target.rank for target, rank in new.lora.live_ranks().items())
    assert all(rank < 4 for rank in moved.lora.live_ranks().values()), "control"
    settings.apply({"new": new}, {"new": train(new)})
    assert min(new.lora.live_ranks().values()) < 4


def test_all_energy_changes_nothing_but_what_is_superfluous() -> None:
    adapter = learnt(make_actor(), r=4)
    with torch.no_grad():
        a, _ = adapter.lora.factors(target_of(adapter))
        a[2:] = 2 * a[:2]
    batch = make_batch(adapter)
    before, state = outputs(adapter, batch).detach(), {k: v.clone() for k, v in adapter.state_dict().items()}
    RankAdaptation(energy=1.0).apply({"a": adapter}, {"a": torch.optim.Adam(adapter.parameters())})
    assert adapter.lora.live_ranks()[target_of(adapter)] == 2
    torch.testing.assert_close(outputs(adapter, batch), before, rtol=1e-4, atol=1e-5)
    changed = {k for k, v in adapter.state_dict().items() if not torch.equal(v, state[k])}
    assert changed == {"lora.network.4.lora_A.weight", "lora.network.4.lora_B.weight"}
    RankAdaptation(energy=0.3).apply({"a": adapter}, {"a": torch.optim.Adam(adapter.parameters())})
    assert (outputs(adapter, batch) - before).abs().max() > 1e-3, "control: less energy is another policy"


def test_moments_of_what_was_turned_are_forgotten_and_no_others() -> None:
    backbone = make_actor()
    wide, narrow = learnt(backbone, 1, r=4, rank_pattern={"network.7": 2}), learnt(backbone, 2, r=1)
    optimizers = apply(RankAdaptation(energy=0.6), wide=wide, narrow=narrow)
    ranks = wide.lora.live_ranks()
    assert any(rank != target.rank for target, rank in ranks.items())
    for target, rank in ranks.items():
        for factor in wide.lora.factors(target):
            assert bool(optimizers["wide"].state[factor]) == (rank == target.rank)
    assert optimizers["wide"].state[wide.lora.dense(target_of(wide, "head.log_std"))]
    assert all(optimizers["narrow"].state[p] for p in narrow.parameters())


@pytest.mark.parametrize("over", [0, 30, 60, 10_000])
def test_the_budget_of_all_agents_together(over: int) -> None:
    backbone = make_actor()
    team = {name: learnt(backbone, seed, r=4) for seed, name in enumerate("abc")}
    least = sum(sum(t.shape) if t.rank else t.num_parameters for x in team.values() for t in x.lora.targets)
    everything = sum(t.num_parameters for x in team.values() for t in x.lora.targets)
    apply(RankAdaptation(energy=1.0, budget=least + over), **team)
    numbers = sum(x.lora.num_live_parameters() for x in team.values())
    assert least <= numbers <= least + over
    assert over == 0 or numbers > least
    assert (numbers < everything) == (least + over < everything)
    with pytest.raises(ValueError, match=f"take {least} parameters"):
        RankAdaptation(budget=least - 1).check(team)


def test_learners_do_what_the_first_one_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second's own singular values would keep other ranks; it takes ranks and factors as they come."""
    first, second = learnt(make_actor(), 1, r=4), learnt(make_actor(), 2, r=4)
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(rank_adaptation, "broadcast", lambda xs: sent.extend(x.clone() for x in xs))
    apply(RankAdaptation(energy=0.8), a=first)
    received = iter(sent)
    monkeypatch.setattr(rank_adaptation, "broadcast", lambda xs: [x.copy_(next(received)) for x in xs])
    apply(RankAdaptation(energy=0.999), a=second)
    assert next(received, None) is None
    assert first.lora.live_ranks() == second.lora.live_ranks()
    for target, rank in first.lora.live_ranks().items():
        if target.rank is not None and rank < target.rank:
            np.testing.assert_array_equal(delta_of(first, target.name), delta_of(second, target.name))


def test_files_and_audits_hold_what_lives(tmp_path: Path) -> None:
    backbone = make_actor()
    adapter, batch = learnt(backbone, r=4, use_rslora=True), make_batch(backbone)
    adapter.lora.truncate(target_of(adapter), 2)
    export_adapter(adapter, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"]["^network\\.4"] == 2
    read = import_adapter(tmp_path, backbone)
    assert target_of(read).rank == 2
    torch.testing.assert_close(outputs(read, batch), outputs(adapter, batch), rtol=1e-5, atol=1e-6)
    audit = audit_adapters({"a": adapter, "all": learnt(backbone, r=4)})
    saved = 2 * sum(target_of(adapter).shape)
    assert audit.trainable[1] - audit.trainable[0] == saved
    assert audit.stored_bytes[1] - audit.stored_bytes[0] == 4 * saved
    assert audit.rank[0] == np.mean(list(adapter.lora.live_ranks().values())) < audit.rank[1] == 4
    assert trimmed(read) is read


def test_trimming_takes_the_live_directions_wherever_they_stand() -> None:
    adapter = learnt(make_actor(), r=4)
    a, b = (factor.data for factor in adapter.lora.factors(target_of(adapter)))
    a[[0, 2]], b[:, [0, 2]] = 0.0, 0.0
    small = trimmed(adapter)
    for found, expected in zip(small.lora.factors(target_of(small)), (a[[1, 3]], b[:, [1, 3]]), strict=True):
        assert torch.equal(found, expected)
    np.testing.assert_allclose(delta_of(small), delta_of(adapter), rtol=1e-6)
    a.zero_()
    b.zero_()
    assert target_of(trimmed(adapter)).rank == 1, "a matrix of rank 0 has no file"


@pytest.mark.parametrize(
    "values, message",
    [
        ({"energi": 0.9}, r"no key 'energi'. Did you mean 'energy'"),
        ({"energy": 0.0}, r"energy=0.0: expected a share above 0, at most 1"),
        ({"energy": "all"}, r"energy='all'"),
        ({"every": 0}, r"every=0: expected a whole number of at least 1"),
        ({"budget": 2.5}, r"budget=2.5"),
    ],
)
def test_wrong_settings_say_what_is_right(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankAdaptation.of(values)
    assert RankAdaptation.of({"budget": None}) == RankAdaptation(0.99, None, 20)
