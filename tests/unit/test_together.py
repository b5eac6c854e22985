"""Several policies as one player: the same numbers, the same gradients, and each one's part again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import tree
from gymnasium import spaces
from lora_teams import HEADS, learnt, make_actor, make_adapter, make_batch, perturb
from ray.rllib.core.columns import Columns

from rllib_haml.haml import Everywhere, JointRows, NoDrift, Player, sweep
from rllib_haml.haml.order import RandomOrder
from rllib_haml.haml.sweep import ALL_ROWS
from rllib_haml.learners.batch import ACTIVE, JointBatch
from rllib_haml.learners.module_policy import ModulePolicy, RecurrentPolicy
from rllib_haml.learners.together import Together, unfolded
from rllib_haml.modules import adapter_stack
from rllib_haml.modules.actor import ACTION_MASK, Actor

LENGTHS, MAX_SEQ_LEN = (5, 1, 4), 2
STEPS = sum(LENGTHS)


def layout(lengths: tuple[int, ...]) -> JointBatch:
    """As much of a batch of such fragments as recurrent policies look at."""
    last = torch.cat([torch.zeros(0, dtype=torch.bool), *(torch.arange(n + 1) == n for n in lengths)])
    rows = torch.arange(sum(lengths))
    nothing = torch.zeros(len(rows))
    return JointBatch({}, nothing, last, nothing, nothing, nothing, rows, nothing, nothing)


def columns_of(actor: Any, agents: int, seed: int) -> dict[str, Any]:
    """(S, K, ...) of random observations, actions, masks and absences; (F, K, ...) of states."""
    generator = torch.Generator().manual_seed(seed)
    batch = make_batch(actor, STEPS * agents, seed)
    parameters = actor.forward_train(dict(batch))[Columns.ACTION_DIST_INPUTS].detach()
    action, logp = actor.head.family.sample(parameters, generator)
    rows = {Columns.ACTIONS: action, Columns.ACTION_LOGP: logp, **batch}
    states = rows.pop(Columns.STATE_IN, None)
    if states is not None:
        rows = tree.map_structure(lambda x: x[:, 0], rows)
    shaped: Any = tree.map_structure(lambda x: x.unflatten(0, (STEPS, agents)), rows)
    if states is not None:
        few = len(LENGTHS) * agents
        shaped[Columns.STATE_IN] = {k: x[:few].unflatten(0, (-1, agents)) for k, x in states.items()}
    return shaped | {ACTIVE: torch.rand(STEPS, agents, generator=generator) > 0.3}


def policy_of(module: Any, columns: dict[str, Any], lengths: tuple[int, ...] = LENGTHS) -> ModulePolicy:
    parameters = list(module.parameters())
    keys: dict[str, Any] = {"optimizer": torch.optim.SGD(parameters, lr=0.1), "parameters": parameters}
    if module.is_stateful():
        return RecurrentPolicy(
            module, columns=columns, joint=layout(lengths), max_seq_len=MAX_SEQ_LEN, **keys
        )
    return ModulePolicy(module, columns, **keys)


def adapters(head: str, agents: tuple[int, ...], network: str = "mlp") -> dict[str, ModulePolicy]:
    backbone = make_actor(head, network)
    columns = [columns_of(backbone, count, seed) for seed, count in enumerate(agents)]
    backbone.double()
    return {f"agent_{i}": policy_of(learnt(backbone, i, r=1 + i % 2), own) for i, own in enumerate(columns)}


def together(members: dict[str, ModulePolicy]) -> Together:
    return Together(members, {name: policy.optimizer for name, policy in members.items()})


def assert_each_alone(policy: Together, members: dict[str, ModulePolicy], rows: Any = ALL_ROWS) -> None:
    found, alone = policy.evaluate(rows), {name: member.evaluate(rows) for name, member in members.items()}
    for name, expected in alone.items():
        own = policy.member(name, found)
        for part in ("log_prob", "entropy", "parameters"):
            torch.testing.assert_close(getattr(own, part), getattr(expected, part), rtol=1e-9, atol=1e-9)
    assert len({round(float(e.log_prob.detach().sum()), 3) for e in alone.values()}) == len(members), (
        "control"
    )
    if not torch.is_grad_enabled():
        return
    gradients = torch.autograd.grad(found.log_prob.square().sum(), policy.parameters())
    squares = torch.stack([part.log_prob.square().sum() for part in alone.values()]).sum()
    for gradient, expected in zip(gradients, torch.autograd.grad(squares, policy.parameters()), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


@pytest.fixture(params=[10**6, 3 * STEPS, 1], ids=["all at once", "a few at once", "one by one"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many agents' rows a product takes on a CPU."""
    monkeypatch.setattr(adapter_stack, "ROWS_AT_ONCE", request.param)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("rows", [ALL_ROWS, torch.tensor([4, 1, 5])], ids=["all", "minibatch"])
@pytest.mark.parametrize("agents", [(1, 1, 1), (2, 2), (1, 3, 2)], ids=str)
@pytest.mark.parametrize("head", ["box", "discrete", "tuple"])
def test_together_is_each_alone(head: str, agents: tuple[int, ...], rows: Any) -> None:
    members = adapters(head, agents)
    policy = together(members)
    assert len(policy._parts) == 1, "one network"
    assert_each_alone(policy, members, rows)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("agents", [(1, 1, 1), (1, 3, 2)], ids=str)
@pytest.mark.parametrize("network", ["gru", "lstm"])
def test_recurrent_adapters_together(network: str, agents: tuple[int, ...]) -> None:
    """Before and after a move, in minibatches of whole sequences too, past each one's own absences."""
    members = adapters("discrete", agents, network)
    policy = together(members)
    assert len(policy._parts) == 1, "one network"
    assert not all(map(torch.equal, policy.active[:-1], policy.active[1:])), "control"
    assert_each_alone(policy, members)
    for seed, member in enumerate(members.values()):
        perturb(member.module, seed)
    for rows in (ALL_ROWS, torch.tensor([2, 3, 5, 6, 7])):
        assert_each_alone(policy, members, rows)
    with torch.no_grad():
        assert_each_alone(policy, members)


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_a_learner_without_rows(network: str) -> None:
    """Nor in one of its minibatches: gradients are zero, and known."""
    members = adapters("box", (1, 2), network)
    empty = {
        name: policy_of(policy.module, tree.map_structure(lambda x: x[:0], policy.columns), ())
        for name, policy in members.items()
    }
    no_rows = torch.zeros(0, dtype=torch.int64)
    for policy, rows in ((together(empty), ALL_ROWS), (together(members), no_rows)):
        found = policy.evaluate(rows)
        assert found.log_prob.shape == (3, 0)
        gradients = torch.autograd.grad(found.log_prob.sum() + found.entropy.sum(), policy.parameters())
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_adapters_that_one_network_cannot_hold(network: str) -> None:
    """As few networks as there must be; every agent has its own figures still."""
    members = adapters("box", (1, 1, 2, 1), network)
    backbone = members["agent_0"].module.backbone
    for name in ("agent_0", "agent_2"):
        other = learnt(backbone, 5, target_modules=["network.1"])
        members[name] = policy_of(other, members[name].columns)
    policy = together(members)
    assert list(policy.members) == ["agent_0", "agent_2", "agent_1", "agent_3"]
    assert len(policy._parts) == 2
    assert_each_alone(policy, members)


def test_a_mask_that_only_some_have() -> None:
    """It allows everything where none was given."""
    members = adapters("discrete", (1, 2))
    columns = {key: x for key, x in members["agent_0"].columns.items() if key != ACTION_MASK}
    members["agent_0"] = policy_of(members["agent_0"].module, columns)
    policy = together(members)
    assert len(policy._parts) == 1
    assert_each_alone(policy, members)


def test_divergence_of_agents_of_different_kinds() -> None:
    """Narrower distributions are followed by zeros, which count for nothing."""
    kinds = {"a": HEADS["box"], "b": spaces.Discrete(4), "c": spaces.Box(-1, 1, (1,))}
    actors = {}
    for seed, (name, space) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        actors[name] = Actor(
            observation_space=make_actor().observation_space,
            action_space=space,
            model_config={"fcnet_hiddens": [6], "head_gain": 1.0},
        )
    members = {
        name: policy_of(make_adapter(actor), columns_of(actor, 1, 3)) for name, actor in actors.items()
    }
    policy = together(members)
    before = policy.evaluate(ALL_ROWS)
    for seed, member in enumerate(members.values()):
        perturb(member.module, seed)
    after = policy.evaluate(ALL_ROWS)
    found = policy.family.kl(before.parameters, after.parameters)
    for place, (name, member) in enumerate(members.items()):
        size = actors[name].head.family.size
        one = [policy.member(name, e).parameters[..., :size] for e in (before, after)]
        torch.testing.assert_close(found[place], member.family.kl(*one)[0])
    assert (found.sum(1) > 0).all()


def test_what_moved_at_once_is_told_of_each() -> None:
    """Each one's own policy before and after, as if it had been a player of its own."""
    members = adapters("box", (1, 1))
    rows, advantage = JointRows.whole(STEPS), torch.randn(STEPS, generator=torch.Generator().manual_seed(0))
    player = Player(together(members), NoDrift(), Everywhere(1))
    result = sweep(
        {"backbone": player},
        lambda log_factor: advantage,
        order=RandomOrder(),
        rows=rows,
        simultaneous=True,
    )
    seen, alone = unfolded(result, {"backbone": player})
    assert seen.order == ["agent_0", "agent_1"]
    for name, member in members.items():
        assert alone[name].policy is member
        step, after = seen.steps[name], seen.after[name]
        assert step.player.policy is member
        assert float(step.move(after).kl().sum()) > 0
        torch.testing.assert_close(after.log_prob, member.evaluate(ALL_ROWS).log_prob)


def test_a_move_that_is_not_finite_leaves_no_trace() -> None:
    """Neither in the weights nor in any member's optimizer."""
    members = adapters("box", (1, 1))
    for member in members.values():
        member.optimizer = torch.optim.Adam(member.parameters(), lr=0.1)
    player, rows = Player(together(members), NoDrift(), Everywhere(1)), JointRows.whole(STEPS)

    def move(advantage: torch.Tensor) -> dict[str, Any]:
        result = sweep({"all": player}, lambda log_factor: advantage, order=RandomOrder(), rows=rows)
        return unfolded(result, {"all": player})[0].faults

    assert not move(torch.ones(STEPS))
    before = _copy(members)
    assert set(move(torch.full((STEPS,), torch.nan))) == {"agent_0", "agent_1"}
    assert all(map(torch.equal, before, _copy(members)))
    assert not move(torch.ones(STEPS))
    assert not any(map(torch.equal, before, _copy(members)))


def _copy(members: dict[str, ModulePolicy]) -> list[torch.Tensor]:
    """Each member's weights, then its second moments and counts of steps, in one vector each."""
    states = [[m.optimizer.state[p] for p in m.parameters()] for m in members.values()]
    return [
        *(torch.cat([p.detach().flatten() for p in m.parameters()]) for m in members.values()),
        *(torch.cat([part["exp_avg_sq"].flatten() for part in state]) for state in states),
        *(torch.stack([part["step"] for part in state]) for state in states),
    ]


@pytest.mark.parametrize("network", ["mlp", "gru"])
@pytest.mark.parametrize("rows, agents", [(5, 2), (6, 2), (7, 1), (100, 1), (1, 12)])
def test_a_product_takes_as_many_agents_as_their_rows_allow(
    network: str, rows: int, agents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence's steps are rows each, an observation's numbers are not."""
    monkeypatch.setattr(adapter_stack, "ROWS_AT_ONCE", 12 if network == "mlp" else 48)
    backbone = make_actor("box", network)
    stack = adapter_stack.AdapterStack([learnt(backbone, i) for i in range(3)])
    lead = (3, rows) if network == "mlp" else (3, rows, 4)
    assert stack._agents_at_once({Columns.OBS: torch.zeros(*lead, 5)}) == agents
    assert stack._agents_at_once({Columns.OBS: torch.zeros(*lead, 5, device="meta")}) is None
