"""Adapters as RLModules: the switch, what is frozen, what they hold, joining."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np
import pytest
import torch
import tree
from gymnasium import spaces
from lora_teams import (
    HEADS,
    NETWORKS,
    OBS,
    learnt,
    make_actor,
    make_adapter,
    make_batch,
    outputs,
    perturb,
    refactored,
)
from ray import cloudpickle
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import nn

from rllib_haml.modules.actor import Actor
from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.adapter_stack import AdapterStack
from rllib_haml.modules.lora_config import LoRAConfig


def bytes_of(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def train(adapter: Adapter, steps: int = 3) -> None:
    """Steps on the adapter's own parameters, with weight decay, which moves also what has no gradient."""
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.05, weight_decay=0.1)
    batch = make_batch(adapter)
    for _ in range(steps):
        optimizer.zero_grad()
        outputs(adapter, batch).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("head", HEADS)
def test_the_switch_changes_no_bit_of_the_policy(head: str, network: str) -> None:
    backbone = make_actor(head, network)
    adapter, batch = make_adapter(backbone, bias="all", modules_to_save=["network.1"]), make_batch(backbone)
    before = backbone.forward_train(dict(batch))
    for forward in (adapter.forward_train, adapter.forward_exploration, adapter.forward_inference):
        after = forward(dict(batch))
        assert set(after) == set(before)
        assert torch.equal(after[Columns.ACTION_DIST_INPUTS], before[Columns.ACTION_DIST_INPUTS])
        for part, value in before.get(Columns.STATE_OUT, {}).items():
            assert torch.equal(after[Columns.STATE_OUT][part], value)
    perturb(adapter, 0)
    moved = (outputs(adapter, batch) - before[Columns.ACTION_DIST_INPUTS]).abs()
    assert moved.max() > 1e-2, "control: an adapter that has moved changes the policy"


@pytest.mark.parametrize("init", ["lorasa", True, "gaussian", "orthogonal"])
@pytest.mark.parametrize("policy", ["clip", "dense"])
def test_the_switch_under_every_init_and_full_rank_policy(init: Any, policy: str) -> None:
    backbone = make_actor("box", "gru")
    adapter = make_adapter(backbone, init_lora_weights=init, full_rank_policy=policy, r=4)
    batch = make_batch(backbone)
    assert torch.equal(outputs(adapter, batch), outputs(backbone, batch))


@pytest.mark.parametrize("network", ["mlp", "gru", "lstm"])
def test_an_adapter_acts_as_a_network_with_the_summed_weights(network: str) -> None:
    """The sum is made here by numpy in float64, and loaded into a fresh actor."""
    backbone = make_actor("tuple", network)
    adapter = learnt(backbone)
    lora = {name: x.double().numpy() for name, x in adapter.lora.state_dict().items()}
    state = {name: x.double().numpy() for name, x in backbone.state_dict().items()}
    for name in list(state):
        module, _, leaf = name.rpartition(".")
        if f"{module}.lora_A.weight" in lora and leaf == "weight":
            state[name] = (
                state[name] + 1.5 * lora[f"{module}.lora_B.weight"] @ lora[f"{module}.lora_A.weight"]
            )
        elif f"{module}.delta_{leaf}" in lora:
            state[name] = state[name] + lora[f"{module}.delta_{leaf}"]
    by_hand, batch = make_actor("tuple", network, seed=9).double(), make_batch(backbone)
    by_hand.set_state(state)
    expected = outputs(by_hand, double(batch))
    torch.testing.assert_close(outputs(adapter, batch).double(), expected, rtol=1e-5, atol=1e-5)
    assert (outputs(backbone, batch) - expected).abs().max() > 1e-2


def double(batch: dict[str, Any]) -> dict[str, Any]:
    state = {part: value.double() for part, value in batch.get(Columns.STATE_IN, {}).items()}
    return {**batch, Columns.OBS: batch[Columns.OBS].double(), Columns.STATE_IN: state}


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_a_merged_policy_is_an_actor_that_stands_alone(network: str) -> None:
    backbone = make_actor("dict", network)
    adapter, batch = learnt(backbone), make_batch(backbone)
    before, own = bytes_of(backbone), bytes_of(adapter)
    merged = adapter.merged()
    assert type(merged) is Actor
    expected = outputs(adapter, batch).detach()
    torch.testing.assert_close(outputs(merged, batch), expected, rtol=1e-6, atol=1e-6)
    perturb(adapter, 3)
    torch.testing.assert_close(outputs(merged, batch), expected, rtol=1e-6, atol=1e-6)
    assert (bytes_of(backbone) == before, bytes_of(adapter) == own) == (True, False)
    perturb(merged, 4)
    assert bytes_of(backbone) == before
    assert set(merged.state_dict()) == set(backbone.state_dict())


def test_an_unbound_adapter_names_the_command_that_merges_it() -> None:
    adapter = copy.deepcopy(make_adapter(make_actor()))
    for act in (adapter.forward_train, adapter.forward_inference, adapter.forward_exploration):
        with pytest.raises(RuntimeError, match=r"bound to no backbone.*`rllib adapters merge CHECKPOINT`"):
            act(make_batch(adapter))
    with pytest.raises(RuntimeError, match=r"rllib adapters merge"):
        adapter.merged()


@pytest.mark.parametrize("changes", [{"fcnet_hiddens": [10, 8]}, {"squash_actions": True}, {"use_gru": True}])
def test_it_is_bound_only_to_the_backbone_it_was_made_for(changes: dict[str, Any]) -> None:
    adapter = make_adapter(make_actor())
    with pytest.raises(ValueError, match=r"made for another backbone.*model_config"):
        adapter.bind(make_actor(**changes))
    adapter.bind(make_actor(seed=5))


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_training_an_adapter_leaves_the_backbone_as_it_is(network: str) -> None:
    backbone = make_actor("box", network)
    adapter = make_adapter(backbone)
    before, own = bytes_of(backbone), bytes_of(adapter)
    train(adapter)
    assert bytes_of(backbone) == before
    assert bytes_of(adapter) != own
    assert all(p.grad is None for p in backbone.parameters())


def test_control_train_backbone_lets_gradients_through() -> None:
    backbone = make_actor()
    adapter = make_adapter(backbone, train_backbone=True)
    before = bytes_of(backbone)
    batch = make_batch(adapter)
    outputs(adapter, batch).square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())
    torch.optim.SGD(backbone.parameters(), lr=0.1).step()
    assert bytes_of(backbone) != before


@pytest.mark.parametrize("count", [2, 11, 27])
def test_an_agents_update_changes_no_byte_of_another(count: int) -> None:
    """Among them agent_1 and agent_10, whose names begin alike."""
    backbone = make_actor("discrete")
    agents = {f"agent_{i}": make_adapter(backbone, seed=i) for i in range(count)}
    frozen = bytes_of(backbone)
    for mover in ("agent_1", f"agent_{count - 1}"):
        before = {name: bytes_of(adapter) for name, adapter in agents.items()}
        train(agents[mover], 1)
        changed = {name for name, adapter in agents.items() if bytes_of(adapter) != before[name]}
        assert changed == {mover}
    assert bytes_of(backbone) == frozen


def test_it_holds_its_own_tensors_only() -> None:
    backbone = make_actor("box", "gru")
    adapter = make_adapter(backbone)
    names = set(adapter.state_dict())
    assert names == {name for name, _ in adapter.named_parameters()}
    assert all(".lora_A." in name or ".lora_B." in name or "delta_" in name for name in names)
    assert backbone not in list(adapter.modules())
    stored = sum(x.size for x in adapter.get_state().values())
    assert stored == sum(t.num_parameters for t in adapter.lora.targets)


def test_copies_and_pickles_hold_no_backbone() -> None:
    backbone = make_actor("box", "gru")
    adapter, batch = learnt(backbone), make_batch(backbone)
    expected = outputs(adapter, batch)
    for made in (copy.deepcopy(adapter), cloudpickle.loads(cloudpickle.dumps(adapter))):
        assert bytes_of(made) == bytes_of(adapter)
        assert made.is_stateful()
        made.bind(backbone)
        assert torch.equal(outputs(made, batch), expected)
        perturb(made, 7)
    assert torch.equal(outputs(adapter, batch), expected), "copies share no memory"
    marker = backbone.network[1].weight.detach().numpy().tobytes()
    assert marker not in cloudpickle.dumps(adapter)
    assert marker in cloudpickle.dumps(backbone), "control"


def test_rllib_builds_it_from_its_spec_and_state() -> None:
    backbone = make_actor("multi discrete", "lstm")
    adapter, batch = learnt(backbone, r=3), make_batch(backbone)
    spec = RLModuleSpec(Adapter, OBS, HEADS["multi discrete"], model_config=adapter.model_config)
    built = spec.build()
    assert isinstance(built, Adapter)
    built.set_state(adapter.get_state())
    built.bind(backbone)
    assert torch.equal(outputs(built, batch), outputs(adapter, batch))
    assert str(built.get_train_action_dist_cls().family) == str(backbone.head.family)
    initial = built.get_initial_state()
    assert {k: v.shape for k, v in initial.items()} == {
        k: v.shape for k, v in backbone.get_initial_state().items()
    }
    initial["h"] += 1
    assert not built.get_initial_state()["h"].any()


def test_building_one_draws_its_own_factors_only() -> None:
    """The shapes come from a network without memory, which draws no random numbers."""
    made = make_adapter(make_actor(), seed=3)
    torch.manual_seed(3)
    weight = torch.empty(10, 2)
    nn.init.kaiming_uniform_(weight, a=5**0.5)
    assert torch.equal(made.lora.factors(made.lora.targets[1])[1], weight)


def test_states_are_loaded_bit_for_bit_or_not_at_all() -> None:
    adapter = learnt(make_actor()).double()
    with torch.no_grad():
        adapter.lora.factors(adapter.lora.targets[1])[0].mul_(1 + 1e-15)
    other = make_adapter(make_actor(), seed=4).double()
    other.set_state({name: x.numpy() for name, x in adapter.state_dict().items()})
    assert bytes_of(other) == bytes_of(adapter)
    with pytest.raises(ValueError, match=r"(?s)not of this network.*size mismatch"):
        make_adapter(make_actor(), r=1).set_state(adapter.get_state())
    with pytest.raises(ValueError, match=r"Missing key"):
        other.set_state({})


@pytest.mark.parametrize(("head", "network"), [("box", "mlp"), ("discrete", "mlp"), ("box", "lstm")])
def test_a_team_as_one_network(head: str, network: str) -> None:
    """Each agent's outputs and gradients are those of its adapter alone; two agents have the same one."""
    backbone = make_actor(head, network)
    own = [learnt(backbone, seed, r=rank) for seed, rank in enumerate((2, 2, 3))]
    team = [own[0], own[1], own[0], own[2]]
    batches = [make_batch(backbone, seed=seed) for seed in range(4)]
    batch = tree.map_structure(lambda *rows: torch.stack(rows), *batches)
    together = AdapterStack(team).forward(batch)[Columns.ACTION_DIST_INPUTS]
    parameters = [p for adapter in own for p in adapter.parameters()]
    found = torch.autograd.grad(together.square().sum(), parameters)
    alone = torch.stack([outputs(adapter, batch) for adapter, batch in zip(team, batches, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert (together[0] - outputs(team[1], batches[0])).abs().max() > 1e-3, "any adapter would do"
    for gradient, expected in zip(found, torch.autograd.grad(alone.square().sum(), parameters), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"Adapters \[1\] are not like the first: .* one backbone"):
        AdapterStack([team[0], make_adapter(make_actor(head, network))])


def test_a_team_as_one_network_that_sees() -> None:
    """Through convolutions, and in observations of several parts."""
    picture = spaces.Box(0, 255, (16, 16, 1), np.uint8)
    seen = spaces.Dict({"picture": picture, "place": spaces.Box(-1, 1, (2,), np.float32)})
    torch.manual_seed(0)
    config = {"fcnet_hiddens": [6], "head_gain": 1.0, "conv_filters": [[4, 3, 2]]}
    backbone = Actor(observation_space=seen, action_space=spaces.Discrete(3), model_config=config)
    team = [learnt(backbone, seed) for seed in range(3)]
    seen.seed(0)
    rows = [seen.sample() for _ in range(3 * 5)]
    observed = tree.map_structure(lambda *x: torch.as_tensor(np.stack(x)).unflatten(0, (3, 5)), *rows)
    together = AdapterStack(team).forward({Columns.OBS: observed})[Columns.ACTION_DIST_INPUTS]
    for i, adapter in enumerate(team):
        alone = outputs(adapter, {Columns.OBS: tree.map_structure(lambda x, i=i: x[i], observed)})
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-6)
        assert (together[i] - together[i - 1]).abs().max() > 1e-3, "control"


def test_an_agent_that_joins() -> None:
    backbone, batch = make_actor("box", "gru"), make_batch(make_actor("box", "gru"))
    peers = [learnt(backbone, seed) for seed in (1, 2)]
    new = learnt(backbone, 3, r=4)
    new.start_from("zero")
    assert torch.equal(outputs(new, batch), outputs(backbone, batch))
    new.start_from("copy", peers[:1])
    torch.testing.assert_close(outputs(new, batch), outputs(peers[0], batch), rtol=1e-4, atol=1e-5)
    alike = make_adapter(backbone, 8)
    alike.start_from("copy", peers[:1])
    assert bytes_of(alike) == bytes_of(peers[0])
    new.start_from("mean", peers)
    for name, delta in new.lora.deltas().items():
        both = [peer.lora.deltas()[name].detach().double().numpy() for peer in peers]
        np.testing.assert_allclose(delta.detach(), (both[0] + both[1]) / 2, rtol=1e-4, atol=1e-5)
    assert all(p.requires_grad for p in new.parameters())


def test_the_mean_in_fewer_directions_is_its_best_approximation() -> None:
    backbone = make_actor()
    peers = [learnt(backbone, seed) for seed in (1, 2, 3)]
    new = make_adapter(backbone)
    new.start_from("mean", peers)
    deltas = [peer.lora.deltas()["network.4.weight"].detach().double().numpy() for peer in peers]
    left, sizes, right = np.linalg.svd(sum(deltas) / 3)
    nearest = left[:, :2] * sizes[:2] @ right[:2]
    np.testing.assert_allclose(new.lora.deltas()["network.4.weight"].detach(), nearest, rtol=1e-4, atol=1e-5)
    assert sizes[2] > 0.1, "control: three peers of rank 2 have a mean of higher rank"


@pytest.mark.parametrize("how, count", [("zero", 1), ("copy", 0), ("copy", 2), ("mean", 0), ("none", 0)])
def test_a_wrong_number_of_peers(how: Any, count: int) -> None:
    backbone = make_actor()
    with pytest.raises(ValueError, match=r"'zero' with none, 'copy' with one"):
        make_adapter(backbone).start_from(how, [make_adapter(backbone)] * count)


def test_peers_that_adapt_other_parameters() -> None:
    backbone = make_actor()
    with pytest.raises(ValueError, match=r"different parameters: head.log_std"):
        make_adapter(backbone).start_from("mean", [make_adapter(backbone, adapt_log_std=False)])


def test_refactoring_to_a_higher_rank_keeps_the_policy() -> None:
    backbone = make_actor("box", "gru")
    adapter, batch = learnt(backbone), make_batch(backbone)
    wider = refactored(adapter, LoRAConfig(r=4, lora_alpha=1))
    torch.testing.assert_close(outputs(wider, batch), outputs(adapter, batch), rtol=1e-4, atol=1e-5)
    narrower = refactored(adapter, LoRAConfig(r=1, lora_alpha=1))
    assert (outputs(narrower, batch) - outputs(adapter, batch)).abs().max() > 1e-3
    assert narrower.model_config["lora"]["r"] == 1
