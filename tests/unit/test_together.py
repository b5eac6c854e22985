"""Several policies as one player: the same numbers, the same gradients, and each one's part again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from lora_teams import HEADS, learnt, make_actor, make_batch, perturb
from ray.rllib.core.columns import Columns

from rllib_haml.haml import Everywhere, JointRows, NoDrift, Player, sweep
from rllib_haml.haml.order import RandomOrder
from rllib_haml.learners.batch import ACTIVE
from rllib_haml.learners.module_policy import ModulePolicy
from rllib_haml.learners.together import Together, unfolded
from rllib_haml.modules.actor import ACTION_MASK, Actor

STEPS = 7


def columns_of(actor: Any, agents: int, seed: int) -> dict[str, Any]:
    """(S, K, ...) of random observations, actions and masks."""
    generator = torch.Generator().manual_seed(seed)
    batch = make_batch(actor, STEPS * agents, seed)
    parameters = actor.forward_train(dict(batch))[Columns.ACTION_DIST_INPUTS].detach()
    action, logp = actor.head.family.sample(parameters, generator)
    rows = {Columns.ACTIONS: action, Columns.ACTION_LOGP: logp, **batch}
    shaped = {key: x.unflatten(0, (STEPS, agents)) for key, x in rows.items() if torch.is_tensor(x)}
    return shaped | {ACTIVE: torch.rand(STEPS, agents, generator=generator) > 0.2}


def policy_of(module: Any, columns: dict[str, Any]) -> ModulePolicy:
    parameters = list(module.parameters())
    return ModulePolicy(module, columns, parameters, torch.optim.SGD(parameters, lr=0.1))


def adapters(head: str, agents: tuple[int, ...]) -> dict[str, ModulePolicy]:
    backbone = make_actor(head)
    return {
        f"agent_{i}": policy_of(learnt(backbone, i, r=1 + i % 2), columns_of(backbone, count, i))
        for i, count in enumerate(agents)
    }


def together(members: dict[str, ModulePolicy]) -> Together:
    return Together(members, {name: policy.optimizer for name, policy in members.items()})


@pytest.mark.parametrize("rows", [slice(None), torch.tensor([4, 1, 5])], ids=["all", "minibatch"])
@pytest.mark.parametrize("agents", [(1, 1, 1), (2, 2), (1, 2)], ids=str)
@pytest.mark.parametrize("head", ["box", "discrete"])
def test_together_is_each_alone(head: str, agents: tuple[int, ...], rows: Any) -> None:
    members = adapters(head, agents)
    policy = together(members)
    assert (policy._stacked is not None) == (len(set(agents)) == 1), "the way of evaluating is another"
    found = policy.evaluate(rows)
    alone = {name: member.evaluate(rows) for name, member in members.items()}
    for name, expected in alone.items():
        own = policy.member(name, found)
        for part in ("log_prob", "entropy", "parameters"):
            torch.testing.assert_close(getattr(own, part), getattr(expected, part), rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(found.log_prob.square().sum(), policy.parameters())
    squares = sum(part.log_prob.square().sum() for part in alone.values())
    assert isinstance(squares, torch.Tensor)
    for gradient, expected in zip(gradients, torch.autograd.grad(squares, policy.parameters()), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_a_mask_that_only_some_have() -> None:
    members = adapters("discrete", (1, 1))
    del members["agent_0"].inputs[ACTION_MASK]
    policy = together(members)
    assert policy._stacked is None
    assert torch.isfinite(policy.evaluate(slice(None)).log_prob).all()


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
    members = {name: policy_of(actor, columns_of(actor, 1, 3)) for name, actor in actors.items()}
    policy = together(members)
    before = policy.evaluate(slice(None))
    for seed, actor in enumerate(actors.values()):
        perturb(actor, seed)
    after = policy.evaluate(slice(None))
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
        torch.testing.assert_close(after.log_prob, member.evaluate(slice(None)).log_prob)


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
