"""Adapters compared on the states that the team visits, against loops over who acted."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from haml_policies import Ranks
from lora_teams import OBS, learnt, make_actor, make_adapter, outputs
from ray.rllib.core.columns import Columns
from torch.distributions import Categorical, kl_divergence

from rllib_haml.cli.report import report
from rllib_haml.learners import adapter_report
from rllib_haml.learners.adapter_report import MAX_OBSERVATIONS, report_adapters
from rllib_haml.learners.batch import ACTIVE, JointBatch
from rllib_haml.modules.actor import ACTION_MASK
from rllib_haml.modules.adapter_audit import audit_table

LENGTHS, MAX_SEQ_LEN = (13, 2, 25), 4
STEPS = sum(LENGTHS)
WHOLE, PART, REST = torch.arange(STEPS), torch.arange(13, 15), torch.tensor([*range(13), *range(15, STEPS)])


def adapters(network: str = "mlp", max_seq_len: int = MAX_SEQ_LEN) -> dict[str, Any]:
    backbone = make_actor("discrete", network, max_seq_len=max_seq_len)
    return {"a": learnt(backbone, 1), "b": learnt(backbone, 2), "new": make_adapter(backbone)}


def batch(names: Any, rows: torch.Tensor, lengths: tuple[int, ...] = LENGTHS) -> JointBatch:
    """A learner's part of STEPS joint steps, its fragments' lengths; `new` stands for two agents.

    What the absent see is wild.
    """
    generator = torch.Generator().manual_seed(3)
    policies = {}
    for name in names:
        agents = 2 if name == "new" else 1
        active = torch.rand(STEPS, agents, generator=generator) < 0.6
        obs = torch.rand(STEPS, agents, *(OBS.shape or ()), generator=generator) * 2 - 1
        mask = torch.rand(STEPS, agents, 4, generator=generator) > 0.3
        mask[..., 0] = True
        obs[~active] = 40.0
        state = torch.randn(STEPS, agents, 7, generator=generator)
        columns = {Columns.OBS: obs, ACTION_MASK: mask, ACTIVE: active}
        policies[name] = {key: column[rows] for key, column in columns.items()}
        begins = rows[torch.tensor(lengths, dtype=torch.int64).cumsum(0) - torch.tensor(lengths).long()]
        policies[name][Columns.STATE_IN] = {"h": state[begins]}
    last = torch.cat([torch.zeros(0).bool(), *(torch.arange(n + 1) == n for n in lengths)])
    nothing = torch.zeros(0)
    return JointBatch(policies, nothing, last, nothing, nothing, nothing, rows, nothing, nothing)


def divergence(team: dict[str, Any], joint: Any, update: int = 1) -> np.ndarray:
    found = report_adapters(team, joint, STEPS, (5, update)).divergence
    assert found is not None
    return found


def by_loop(team: dict[str, Any], joint: Any) -> np.ndarray:
    found = []
    for columns in joint.policies.values():
        for step, agent in columns[ACTIVE].nonzero().tolist():
            one = {key: columns[key][step, agent][None] for key in (Columns.OBS, ACTION_MASK)}
            found.append(pairwise([outputs(x, one).detach() for x in team.values()]))
    return np.mean(found, axis=0)


def by_loop_over_time(team: dict[str, Any], joint: Any) -> np.ndarray:
    """The first MAX_SEQ_LEN joint steps in which an agent may have been, one step after another."""
    found = []
    for columns in joint.policies.values():
        for fragment, start in enumerate(np.cumsum(LENGTHS) - LENGTHS):
            for agent in range(columns[ACTIVE].shape[1]):
                states = [{"h": columns[Columns.STATE_IN]["h"][fragment, agent][None]} for _ in team]
                acted = columns[ACTIVE][start : start + LENGTHS[fragment], agent].nonzero()[:, 0].tolist()
                unit = acted[0] // MAX_SEQ_LEN if acted else 0
                for t in [t for t in acted if t // MAX_SEQ_LEN == unit]:
                    keys = (Columns.OBS, ACTION_MASK)
                    one = {key: columns[key][start + t, agent][None, None] for key in keys}
                    seen = [
                        x.forward_train(one | {Columns.STATE_IN: state})
                        for x, state in zip(team.values(), states, strict=True)
                    ]
                    found.append(pairwise([x[Columns.ACTION_DIST_INPUTS][0].detach() for x in seen]))
                    states = [x[Columns.STATE_OUT] for x in seen]
    return np.mean(found, axis=0)


def pairwise(logits: list[torch.Tensor]) -> np.ndarray:
    each = [Categorical(logits=x.double()) for x in logits]
    one_way = np.array([[float(kl_divergence(p, q)) for q in each] for p in each])
    return (one_way + one_way.T) / 2


def test_divergence_is_that_on_what_acting_agents_saw() -> None:
    team, joint = adapters(), batch("ab", WHOLE)
    joint.policies["new"] = batch(["new"], WHOLE).policies["new"]
    assert 4 * STEPS <= MAX_OBSERVATIONS
    found = divergence(team, joint)
    np.testing.assert_allclose(found, by_loop(team, joint), rtol=1e-4, atol=1e-7)
    for columns in joint.policies.values():
        columns[ACTIVE][:] = True
    assert abs(divergence(team, joint)[0, 1] / found[0, 1] - 1) > 0.05, "control: the absent count"


def test_divergence_of_policies_that_remember() -> None:
    """From the state that the agent had where its fragment begins."""
    team = adapters("gru")
    joint = batch(team, WHOLE)
    assert 4 * len(LENGTHS) * MAX_SEQ_LEN <= MAX_OBSERVATIONS
    found, expected = divergence(team, joint), by_loop_over_time(team, joint)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    for columns in joint.policies.values():
        columns[Columns.STATE_IN]["h"].zero_()
    assert abs(divergence(team, joint)[0, 1] / found[0, 1] - 1) > 0.01, "control: the state matters"


def test_policies_that_remember_long_are_compared_in_every_update() -> None:
    team = adapters("gru", max_seq_len=2 * MAX_OBSERVATIONS)
    joint = batch(team, WHOLE)
    assert all(divergence(team, joint, update)[0, 1] > 0 for update in range(30))


def test_a_mask_that_only_some_were_given() -> None:
    team, joint = adapters(), batch(("a", "b", "new"), WHOLE)
    joint.policies["a"][ACTION_MASK].fill_(True)
    expected = divergence(team, joint)
    del joint.policies["a"][ACTION_MASK]
    np.testing.assert_array_equal(divergence(team, joint), expected)


@pytest.mark.parametrize(
    "shares",
    [((REST, (13, 25)), (PART, (2,))), ((WHOLE, LENGTHS), (WHOLE[:0], ()))],
    ids=["nearly nothing", "nothing"],
)
@pytest.mark.parametrize(("network", "limit"), [("mlp", 45), ("gru", 20)])
def test_two_learners_report_what_one_does(
    network: str, limit: int, shares: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the little that a small limit leaves, however little the second learner has."""
    monkeypatch.setattr(adapter_report, "MAX_OBSERVATIONS", limit)
    monkeypatch.setattr(adapter_report, "MIN_SEQUENCES", 1)
    team = adapters(network)
    whole = divergence(team, batch(team, WHOLE))
    shards = [batch(team, rows, lengths) for rows, lengths in shares]
    teams = [adapters(network) for _ in shards]  # one thread must not lend another its weights
    ranks, here = Ranks(2), threading.local()
    counts: list[int] = []

    def all_reduce(x: torch.Tensor) -> torch.Tensor:
        total = ranks.all_reduce(here.rank)(x)
        counts.append(int(total.sum()))
        return total

    def work(rank: int) -> np.ndarray:
        here.rank = rank
        return divergence(teams[rank], shards[rank])

    with monkeypatch.context() as patch:
        patch.setattr(adapter_report, "all_reduce", all_reduce)
        for found in ranks.run(work):
            np.testing.assert_allclose(found, whole, rtol=1e-6, atol=1e-12)
    assert 0 < counts[-1] < 4 * STEPS * 0.6 / 2, "a few"
    another = divergence(team, batch(team, WHOLE), update=2)
    assert not np.allclose(another, whole), "control: another update looks at other steps"


@pytest.mark.parametrize("network", ["mlp", "gru"])
def test_nobody_acted(network: str) -> None:
    team, joint = adapters(network), batch("ab", WHOLE)
    for columns in joint.policies.values():
        columns[ACTIVE][:] = False
    assert report_adapters(team, joint, STEPS, (5, 1)).divergence is None


def test_a_run_ends_with_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    team = adapters()
    audit = report_adapters(team, batch(team, WHOLE), STEPS, (5, 1))
    learners = {**audit.by_agent(), "__all_modules__": audit.metrics(), "critic": {"vf_loss": 1.0}}
    result: Any = SimpleNamespace(
        error=None, checkpoint=SimpleNamespace(path="CHECKPOINT"), metrics={"learners": learners}
    )
    results: Any = [result]
    report("x", results, "PATH", 0)
    output = capsys.readouterr().out
    table = audit_table(audit.by_agent())
    assert table in output
    assert "rllib adapters audit CHECKPOINT" in output
    assert [line.split()[0] for line in table.splitlines()] == [
        "agent",
        "a",
        "b",
        "new",
    ]
    result.metrics = {"learners": {"a": {"policy_loss": 1.0}}}
    report("x", results, "PATH", 0)
    assert "adapters" not in capsys.readouterr().out, "control: agents without adapters"
