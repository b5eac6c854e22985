"""How far agents have drifted apart, against numpy and torch's own divergences."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_teams import learnt, make_actor, make_adapter, make_batch, outputs
from torch.distributions import Categorical, Normal, kl_divergence

from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.adapter_audit import audit_table, plot_audit
from rllib_haml.modules.adapter_drift import AdapterAudit, audit_adapters, divergences
from rllib_haml.modules.adapter_layers import layer_table


def team(head: str = "box", network: str = "mlp") -> dict[str, Adapter]:
    """Two that have learnt, one with fewer targets, one that has not."""
    backbone = make_actor(head, network)
    return {
        "a": learnt(backbone, 1),
        "b": learnt(backbone, 2, r=1, modules_to_save=["network.0"]),
        "few": learnt(backbone, 3, target_modules=["network.4"]),
        "new": make_adapter(backbone),
    }


def audit_on(agents: dict[str, Adapter]) -> AdapterAudit:
    """With the divergences on a few random rows."""
    each = list(agents.values())
    return replace(
        audit_adapters(agents), divergence=divergences(each, make_batch(each[0]), torch.ones(6).bool())
    )


def deltas(adapter: Adapter) -> dict[str, np.ndarray]:
    return {name: x.detach().double().numpy() for name, x in adapter.lora.deltas().items()}


def test_norms_and_stable_ranks_against_numpy() -> None:
    agents = team()
    audit = audit_adapters(agents)
    base = {n: p.detach().double().numpy() for n, p in agents["a"].backbone.named_parameters()}
    assert audit.agents == ("a", "b", "few", "new")
    assert audit.layers == ("network.1.weight", "network.4.weight", "network.7.weight")
    for i, adapter in enumerate(agents.values()):
        for j, layer in enumerate(audit.layers):
            delta = deltas(adapter).get(layer, np.zeros(base[layer].shape))
            frobenius, largest = np.linalg.norm(delta), np.linalg.norm(delta, 2)
            ratio = frobenius / np.linalg.norm(base[layer])
            assert audit.relative_norm[i, j] == pytest.approx(ratio, rel=1e-5)
            stable = (frobenius / largest) ** 2 if largest else 0
            assert audit.stable_rank[i, j] == pytest.approx(stable, rel=1e-5)
    assert not audit.relative_norm[3].any()
    assert audit.stable_rank[1] == pytest.approx(1, rel=1e-5)
    assert audit.stable_rank[0].max() > 1.05, "control"


def test_cosines_of_all_differences_against_numpy() -> None:
    agents = team()
    names = [name for name, _ in agents["a"].backbone.named_parameters()]
    shapes = {name: p.shape for name, p in agents["a"].backbone.named_parameters()}
    vectors = [
        np.concatenate([deltas(adapter).get(n, np.zeros(shapes[n])).ravel() for n in names])
        for adapter in agents.values()
    ]
    cosine = audit_adapters(agents).cosine
    for i, x in enumerate(vectors[:3]):
        for j, y in enumerate(vectors[:3]):
            expected = x @ y / (np.linalg.norm(x) * np.linalg.norm(y))
            assert cosine[i, j] == pytest.approx(expected, abs=1e-6)
    assert np.isnan(cosine[3]).all()
    assert 1e-3 < abs(cosine[0, 1]) < 0.999


@pytest.mark.parametrize("network", ["mlp", "lstm"])
def test_divergences_are_those_of_torch(network: str) -> None:
    for head in ("discrete", "box"):
        backbone = make_actor(head, network)
        agents = {"a": learnt(backbone, 1), "b": learnt(backbone, 2), "twin": learnt(backbone, 2)}
        batch = make_batch(backbone, rows=9)
        seen = [outputs(agents[agent], batch) for agent in ("a", "b")]
        visited = torch.rand(seen[0].shape[:-1], generator=torch.Generator().manual_seed(0)) < 0.6
        divergence = divergences(list(agents.values()), batch, visited)
        p, q = (by_torch(head, parameters[visited]) for parameters in seen)
        expected = (kl_divergence(p, q) + kl_divergence(q, p)) / 2
        expected = expected.sum(-1) if head == "box" else expected
        assert divergence[0, 1] == pytest.approx(expected.mean().item(), rel=1e-4)
        assert divergence[0, 1] > 1e-3
        np.testing.assert_array_equal(divergence, divergence.T)
        assert divergence[1, 2] == 0
        assert not np.diag(divergence).any()


def by_torch(head: str, parameters: torch.Tensor) -> Any:
    parameters = parameters.detach().double()
    if head == "discrete":
        return Categorical(logits=parameters)
    mean, log_std = parameters.chunk(2, -1)
    return Normal(mean, log_std.exp())


def test_numbers_and_bytes() -> None:
    agents = team()
    audit = audit_adapters(agents)
    # (in + out) of 5→10→9→3 at rank 2, and three log_std; float32
    assert audit.trainable[0] == 2 * (15 + 19 + 12) + 3
    assert audit.stored_bytes[0] == 4 * audit.trainable[0]
    assert audit.trainable[1] == 15 + 19 + 12 + 3 + 5 + 5
    assert audit.trainable[2] == 2 * 19 + 3


def test_metrics_are_means_over_agents_or_pairs() -> None:
    agents = team("discrete")
    audit = audit_on(agents)
    metrics = audit.metrics()
    assert audit.divergence is not None
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    assert metrics["adapter_divergence"] == pytest.approx(np.mean([audit.divergence[p] for p in pairs]))
    known = [audit.cosine[p] for p in pairs if 3 not in p]
    assert metrics["adapter_cosine"] == pytest.approx(np.mean(known))
    assert metrics["adapter_relative_norm"] == pytest.approx(audit.relative_norm.mean())
    assert metrics["adapter_trainable"] == audit.trainable.mean()
    assert metrics["adapter_stored_bytes"] == 4 * audit.trainable.mean()
    assert metrics["adapter_rank"] == pytest.approx(np.mean([2, 1, 2, 2]))
    assert all(type(value) is float and np.isfinite(value) for value in metrics.values())
    alone = audit_on({"a": agents["a"]}).metrics()
    assert set(metrics) - set(alone) == {"adapter_divergence", "adapter_cosine"}


def test_an_agents_own_figures_are_means_over_its_layers_and_the_others() -> None:
    agents = team("discrete")
    audit = audit_on(agents)
    divergence = audit.divergence
    assert divergence is not None
    for i, (name, figures) in enumerate(audit.by_agent().items()):
        others = [j for j in range(4) if j != i]
        expected = {
            "adapter_relative_norm": audit.relative_norm[i].mean(),
            "adapter_relative_norm_max": max(audit.relative_norm[i]),
            "adapter_rank": 1 if name == "b" else 2,
            "adapter_trainable": audit.trainable[i],
            "adapter_stored_bytes": 4 * audit.trainable[i],
            "adapter_divergence": divergence[i, others].mean(),
        }
        if name != "new":
            expected["adapter_cosine"] = np.mean([audit.cosine[i, j] for j in others if j != 3])
        assert expected == pytest.approx({key: figures[key] for key in expected})
        assert set(figures) - set(expected) == ({"adapter_stable_rank"} if name != "new" else set())
        assert expected["adapter_relative_norm_max"] > expected["adapter_relative_norm"] or name == "new"


def test_adapters_of_no_matrix_have_figures_too() -> None:
    """Of the standard deviation alone: no layer, no rank, and the largest of no norms is 0."""
    adapter = learnt(make_actor(), target_modules=[], modules_to_save=[], adapt_log_std=True)
    audit = audit_adapters({"a": adapter})
    assert audit.layers == ()
    expected = {"adapter_relative_norm_max": 0.0, "adapter_trainable": 3.0, "adapter_stored_bytes": 12.0}
    assert audit.by_agent()["a"] == expected


def test_the_table_has_a_line_for_each_agent() -> None:
    agents = team("discrete")
    head, *lines = audit_table(audit_on(agents).by_agent()).splitlines()
    assert [line.split()[0] for line in lines] == list(agents)
    assert {len(line) for line in [head, *lines]} == {len(head)}
    assert lines[3].split()[1:4] == ["0.0000", "0.0000", "-"]
    bare = audit_table(audit_adapters({"a": agents["a"]}).by_agent()).splitlines()[1].split()
    assert bare[4:6] == ["-", "-"]


def test_stable_ranks_are_means_over_layers_with_a_difference() -> None:
    """`few` adapts one layer of three, `new` has no difference at all."""
    audit = audit_adapters(team())
    by_agent, layer = audit.by_agent(), audit.layers.index("network.4.weight")
    assert by_agent["few"]["adapter_stable_rank"] == pytest.approx(audit.stable_rank[2, layer])
    assert "adapter_stable_rank" not in by_agent["new"]
    positive = audit.stable_rank[audit.stable_rank > 0]
    assert positive.size == 7
    assert audit.metrics()["adapter_stable_rank"] == pytest.approx(positive.mean())


def test_layers_have_a_table_of_their_own() -> None:
    audit = audit_adapters(team())
    head, *lines = layer_table(audit).splitlines()
    assert {len(line) for line in [head, *lines]} == {len(head)}
    assert [line.split()[0] for line in lines] == list(audit.layers)
    for j, line in enumerate(lines):
        some = [0, 1, 2] if audit.layers[j] == "network.4.weight" else [0, 1]
        norms, ranks = audit.relative_norm[some, j], audit.stable_rank[some, j]
        found = [float(cell) for cell in line.split()[1:]]
        assert found == pytest.approx([norms.mean(), norms.max(), ranks.mean(), ranks.max()], abs=6e-3)
        assert found[:2] == pytest.approx([norms.mean(), norms.max()], abs=6e-5)
    (bare,) = layer_table(
        audit_adapters({"new": make_adapter(make_actor(), target_modules=["4"])})
    ).splitlines()[1:]
    assert bare.split() == ["network.4.weight", "-", "-", "-", "-"]


def test_agents_over_different_backbones_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different backbones"):
        audit_adapters({"a": make_adapter(make_actor()), "b": make_adapter(make_actor())})


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    agents = team("discrete")
    for name, audit in (("with.png", audit_on(agents)), ("without.png", audit_adapters(agents))):
        plot_audit(audit, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_a_panel_for_each_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure
    drawn: list[Any] = []
    monkeypatch.setattr(figure, "savefig", lambda self, path: drawn.append(self))
    audit = audit_on(team("discrete"))
    plot_audit(audit, tmp_path / "x.png")
    panels = {axes.get_title(): axes.images[0].get_array() for axes in drawn[0].axes if axes.get_title()}
    expected = [audit.relative_norm, audit.stable_rank, audit.cosine, audit.divergence]
    assert len(panels) == 4
    for found, values in zip(panels.values(), expected, strict=True):
        np.testing.assert_array_equal(np.ma.filled(found, np.nan), values)


def test_without_matplotlib_the_error_says_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "rllib-haml\[plots\]"'):
        plot_audit(audit_adapters(team()), tmp_path / "x.png")
