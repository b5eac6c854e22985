"""Adapters compared on the states that the team visits, against loops over who acted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lora_teams import OBS, learnt, make_actor, make_adapter, outputs
from ray.rllib.core.columns import Columns
from torch.distributions import Categorical, kl_divergence

from rllib_haml.cli.report import report
from rllib_haml.learners import adapter_report
from rllib_haml.learners.adapter_report import MAX_OBSERVATIONS, report_adapters
from rllib_haml.learners.batch import ACTIVE
from rllib_haml.modules.actor import ACTION_MASK
from rllib_haml.modules.adapter_audit import audit_table
from rllib_haml.modules.adapter_drift import audit_adapters

STEPS = 40


def adapters(network: str = "mlp") -> dict[str, Any]:
    backbone = make_actor("discrete", network)
    return {"a": learnt(backbone, 1), "b": learnt(backbone, 2), "new": make_adapter(backbone)}


def batch(names: Any, rows: torch.Tensor) -> Any:
    """A learner's part of STEPS joint steps; `new` stands for two agents. What the absent see is wild."""
    generator = torch.Generator().manual_seed(3)
    policies = {}
    for name in names:
        agents = 2 if name == "new" else 1
        active = torch.rand(STEPS, agents, generator=generator) < 0.6
        obs = torch.rand(STEPS, agents, *(OBS.shape or ()), generator=generator) * 2 - 1
        mask = torch.rand(STEPS, agents, 4, generator=generator) > 0.3
        mask[..., 0] = True
        obs[~active] = 40.0
        columns = {Columns.OBS: obs, ACTION_MASK: mask, ACTIVE: active}
        policies[name] = {key: column[rows] for key, column in columns.items()}
    return SimpleNamespace(policies=policies, row=rows)


def divergence(team: dict[str, Any], joint: Any, update: int = 1) -> np.ndarray:
    found = report_adapters(team, joint, STEPS, (5, update)).divergence
    assert found is not None
    return found


def by_loop(team: dict[str, Any], joint: Any) -> np.ndarray:
    found = np.zeros((len(team), len(team)))
    count = 0
    for columns in joint.policies.values():
        for step, agent in columns[ACTIVE].nonzero().tolist():
            one = {key: columns[key][step, agent][None] for key in (Columns.OBS, ACTION_MASK)}
            logits = [outputs(x, one).detach().double() for x in team.values()]
            for i, p in enumerate(logits):
                for j, q in enumerate(logits):
                    pair = Categorical(logits=p), Categorical(logits=q)
                    found[i, j] += float(kl_divergence(*pair) + kl_divergence(*reversed(pair))) / 2
            count += 1
    return found / count


def test_divergence_is_that_on_what_acting_agents_saw() -> None:
    team, joint = adapters(), batch("ab", torch.arange(STEPS))
    joint.policies["new"] = batch(["new"], torch.arange(STEPS)).policies["new"]
    assert 4 * STEPS <= MAX_OBSERVATIONS
    found = divergence(team, joint)
    np.testing.assert_allclose(found, by_loop(team, joint), rtol=1e-4, atol=1e-7)
    for columns in joint.policies.values():
        columns[ACTIVE][:] = True
    assert abs(divergence(team, joint)[0, 1] / found[0, 1] - 1) > 0.05, "control: the absent count"


def test_two_learners_report_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the few steps that a small limit leaves; the second learner has nearly nothing."""
    monkeypatch.setattr(adapter_report, "MAX_OBSERVATIONS", 45)
    team = adapters()
    whole = divergence(team, batch(team, torch.arange(STEPS)))
    shards = [batch(team, torch.arange(3, STEPS)), batch(team, torch.arange(3))]
    sent: list[list[torch.Tensor]] = []
    for shard in shards:
        sent.append([])
        monkeypatch.setattr(adapter_report, "all_reduce", lambda x: (sent[-1].append(x.clone()), x)[1])
        divergence(team, shard)
    sums = [first + second for first, second in zip(*sent, strict=True)]
    for shard in shards:
        answers = iter(sums)
        monkeypatch.setattr(adapter_report, "all_reduce", lambda x, answers=answers: next(answers))
        np.testing.assert_allclose(divergence(team, shard), whole, rtol=1e-6, atol=1e-12)
    assert int(sums[1]) < 45
    monkeypatch.undo()
    monkeypatch.setattr(adapter_report, "MAX_OBSERVATIONS", 45)
    another = divergence(team, batch(team, torch.arange(STEPS)), update=2)
    assert not np.allclose(another, whole), "control: another update looks at other steps"


def test_nobody_acted() -> None:
    team, joint = adapters(), batch("ab", torch.arange(STEPS))
    for columns in joint.policies.values():
        columns[ACTIVE][:] = False
    assert report_adapters(team, joint, STEPS, (5, 1)).divergence is None


def test_policies_that_remember_are_compared_by_their_weights_alone() -> None:
    team = adapters("gru")
    audit = report_adapters(team, batch(team, torch.arange(STEPS)), STEPS, (5, 1))
    assert audit.divergence is None
    np.testing.assert_array_equal(audit.relative_norm, audit_adapters(team).relative_norm)
    assert audit.relative_norm[0].all()


def test_a_run_ends_with_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    team = adapters()
    audit = report_adapters(team, batch(team, torch.arange(STEPS)), STEPS, (5, 1))
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
