"""Differences to a network's parameters, against numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lora_teams import OBS, learnt, make_actor, make_batch, perturb
from ray.rllib.core.columns import Columns
from torch import Tensor
from torch.func import functional_call

from rllib_haml.modules.critic import Critic
from rllib_haml.modules.lora import LoRA, stack_effective
from rllib_haml.modules.lora_config import LoRAConfig

INITS = ["lorasa", True, "gaussian", "orthogonal"]


def make(network: str = "gru", seed: int = 0, **keys: Any) -> LoRA:
    torch.manual_seed(seed)
    return LoRA(make_actor(network=network), LoRAConfig(**{"r": 2, "lora_alpha": 3} | keys))


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def base_of(network: str = "gru") -> dict[str, Tensor]:
    return {name: p.detach() for name, p in make_actor(network=network).named_parameters()}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("init", INITS)
def test_differences_are_exactly_zero_at_the_start_and_can_be_learnt(init: Any, rank: int) -> None:
    lora = make(init_lora_weights=init, r=rank, bias="all")
    assert all(not delta.any() for delta in lora.deltas().values())
    loss = sum(((delta - 1) ** 2).sum() for delta in lora.deltas().values())
    assert isinstance(loss, Tensor)
    loss.backward()
    for target in lora.targets:
        moving = [lora.dense(target)] if target.rank is None else lora.factors(target)
        assert any(p.grad is not None and p.grad.any() for p in moving), target


def test_control_two_zero_factors_could_not_be_learnt() -> None:
    a, b = torch.zeros(2, 4, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
    ((b @ a - 1) ** 2).sum().backward()
    assert a.grad is not None
    assert not a.grad.any()


def test_inits_are_drawn_as_their_papers_say() -> None:
    """Bounds of Kaiming's uniform, √(1 / fan_in) here, and standard deviations, on a wide layer."""
    wide = make_actor(fcnet_hiddens=[400, 300])

    def factors(init: Any) -> list[np.ndarray]:
        torch.manual_seed(0)
        lora = LoRA(wide, LoRAConfig(r=4, init_lora_weights=init, target_modules=["network.4"]))
        return [array(x) for x in lora.factors(next(t for t in lora.targets if t.rank))]

    a, b = factors("lorasa")
    assert not a.any()
    assert 0.98 * 0.5 < np.abs(b).max() <= 0.5
    a, b = factors(True)
    assert not b.any()
    assert 0.98 * 0.05 < np.abs(a).max() <= 0.05
    a, b = factors("gaussian")
    assert not b.any()
    assert a.std() == pytest.approx(1 / 4, rel=0.1)
    a, b = factors("orthogonal")
    assert a[:2].std() == pytest.approx(0.1, rel=0.1)
    assert b[:, 2:].std() == pytest.approx(0.1, rel=0.1)
    assert not a[2:].any()
    assert not b[:, :2].any()


def test_names_are_those_of_peft() -> None:
    lora = make("mlp", target_modules=["network.4"], bias="lora_only")
    assert {name: tuple(x.shape) for name, x in lora.state_dict().items()} == {
        "network.4.lora_A.weight": (2, 10),
        "network.4.lora_B.weight": (9, 2),
        "network.4.delta_bias": (9,),
        "head.delta_log_std": (3,),
    }


@pytest.mark.parametrize("rslora", [False, True])
def test_effective_weights_against_numpy(rslora: bool) -> None:
    lora, base = make(bias="all", use_rslora=rslora, rank_pattern={"output": 1}), base_of()
    perturb(lora, 1)
    state = {name: array(x) for name, x in lora.state_dict().items()}
    got, changed = lora.effective(base), set()
    assert list(got) == list(base)
    for name, weight in base.items():
        module, _, leaf = name.rpartition(".")
        expected = array(weight)
        if f"{module}.lora_A.weight" in state and leaf == "weight":
            r = 1 if module == "output" else 2
            product = state[f"{module}.lora_B.weight"] @ state[f"{module}.lora_A.weight"]
            expected = expected + 3 / (r**0.5 if rslora else r) * product
        elif f"{module}.delta_{leaf}" in state:
            expected = expected + state[f"{module}.delta_{leaf}"]
        np.testing.assert_allclose(array(got[name]), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            array(lora.deltas()[name]) if name in lora.deltas() else 0.0,
            expected - array(weight),
            rtol=1e-5,
            atol=1e-6,
        )
        if not torch.equal(got[name], weight):
            changed.add(name)
    assert changed == {target.name for target in lora.targets}
    assert {"network.0.weight", "memory.norm.weight"}.isdisjoint(changed)


@pytest.mark.parametrize("count", [1, 3])
def test_stacked_weights_are_those_of_each_agent(count: int) -> None:
    """Also with different ranks, and where one agent's difference is dense and another's is not."""
    keys: list[dict[str, Any]] = [{}, {"r": 3}, {"rank_pattern": {"memory.input_gates": 1}, "lora_alpha": 1}]
    loras = [make(seed=i, **keys[i]) for i in range(count)]
    for i, lora in enumerate(loras):
        perturb(lora, i)
    if count == 3:
        kinds = [{t.rank is None for t in lora.targets if t.module == "output"} for lora in loras]
        assert kinds == [{False}, {True}, {False}], "the mixed case is not among them"
    base = base_of()
    stacked = stack_effective(base, loras)
    assert list(stacked) == [target.name for target in loras[0].targets]
    for i, lora in enumerate(loras):
        effective = lora.effective(base)
        for name, weights in stacked.items():
            torch.testing.assert_close(weights[i], effective[name], rtol=1e-6, atol=1e-6)
    if count == 3:
        assert (stacked["network.1.weight"][0] - stacked["network.1.weight"][1]).abs().max() > 0.1


def test_stacked_weights_reach_every_agents_factors() -> None:
    loras, base = [make(seed=i) for i in range(2)], base_of()
    for i, lora in enumerate(loras):
        perturb(lora, i)
    stacked = stack_effective(base, loras)
    torch.stack([stacked[t.name][0].square().sum() for t in loras[0].targets]).sum().backward()
    reached = [all(p.grad is not None and bool(p.grad.any()) for p in lora.parameters()) for lora in loras]
    assert reached == [True, False]


def test_agents_that_adapt_different_parameters_are_not_stacked() -> None:
    with pytest.raises(ValueError, match=r"different parameters: head.log_std"):
        stack_effective(base_of(), [make(), make(adapt_log_std=False)])


@pytest.mark.parametrize("init", INITS)
def test_assigned_differences_are_the_best_of_their_rank(init: Any) -> None:
    """Eckart-Young: what is left is the norm of the discarded singular values, by numpy."""
    rng = np.random.default_rng(0)
    lora = make(init_lora_weights=init)
    wanted = {t.name: torch.tensor(rng.normal(size=t.shape)).float() for t in lora.targets}
    lora.assign(wanted)
    for target in lora.targets:
        left = np.linalg.norm(array(lora.deltas()[target.name] - wanted[target.name]))
        if target.rank is None:
            assert left == 0
        else:
            discarded = np.linalg.svd(array(wanted[target.name]), compute_uv=False)[target.rank :]
            assert left == pytest.approx(np.linalg.norm(discarded), rel=1e-5)
            assert left > 0.1, "control: something had to be discarded"


@pytest.mark.parametrize("init", INITS)
def test_directions_that_are_not_needed_can_still_be_learnt(init: Any) -> None:
    lora = make(init_lora_weights=init, r=4)
    wanted = {name: torch.zeros_like(delta) for name, delta in lora.deltas().items()}
    wanted["network.1.weight"] = torch.outer(torch.ones(10), torch.arange(5.0))
    lora.assign(wanted)
    for name, delta in lora.deltas().items():
        torch.testing.assert_close(delta.detach(), wanted[name], rtol=1e-5, atol=1e-5)
    for target in lora.targets:
        if target.rank is not None:
            a, b = lora.factors(target)
            alive = (a.detach().norm(dim=1) > 0) | (b.detach().norm(dim=0) > 0)
            assert alive.all(), target


def test_assign_refuses_other_parameters() -> None:
    lora = make()
    with pytest.raises(ValueError, match=r"of other parameters"):
        lora.assign({"network.1.weight": torch.zeros(10, 5)})


def test_assigning_keeps_what_the_ranks_can_express() -> None:
    first = learnt(make_actor()).lora
    second = make("mlp", seed=5, lora_alpha=17, init_lora_weights="gaussian")
    second.assign(first.deltas())
    for name, delta in first.deltas().items():
        torch.testing.assert_close(second.deltas()[name], delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory", [{}, {"use_gru": True, "lstm_cell_size": 6}])
def test_a_critic_can_be_adapted_too(memory: dict[str, Any]) -> None:
    torch.manual_seed(0)
    critic = Critic(observation_space=OBS, model_config={"fcnet_hiddens": [8, 7]} | memory)
    base = {name: p.detach() for name, p in critic.named_parameters()}
    lora = LoRA(critic, LoRAConfig(r=3))
    batch = make_batch(critic)

    def values() -> Tensor:
        return functional_call(critic, lora.effective(base), (batch,))[Columns.VF_PREDS]

    before = critic.forward_train(batch)[Columns.VF_PREDS]
    assert torch.equal(values(), before)
    perturb(lora, 1)
    assert (values() - before).abs().max() > 1e-2
    assert {target.rank for target in lora.targets} == {3, None}, "the last layer is of rank 1: dense"
