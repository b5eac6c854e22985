"""What moves after the switch: LoRASA's ablations and controls, one key each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from running_state import assert_same_everywhere
from test_lorasa import AGENTS, STEPS, config, moved, weights

from rllib_haml import LoRASA
from rllib_haml.cli.play import _observed
from rllib_haml.learners.adapter_report import report_adapters
from rllib_haml.learners.together import Together

MOVERS = {
    "frozen": [AGENTS, AGENTS],
    "joint": [AGENTS | {"backbone"}] * 2,
    "alternating": [AGENTS, {"backbone"}],
    "continue_shared": [{"backbone"}] * 2,
    "dense_delta": [AGENTS, AGENTS],
    "separate": [AGENTS, AGENTS],
}


@pytest.mark.parametrize("scheme", ["sequential", "simultaneous"])
@pytest.mark.parametrize("mode", MOVERS)
def test_who_moves_after_the_switch(ray_cluster: None, mode: str, scheme: str) -> None:
    """To the last bit; and every policy acts as it was trained to."""
    algo = config(STEPS, adapter_mode=mode, update_scheme=scheme).build_algo()
    algo.train()
    for expected in MOVERS[mode]:
        before = weights(algo)
        learners = algo.train()["learners"]
        assert moved(before, weights(algo)) == expected | {"critic"}
        seen = {"backbone"} if mode == "continue_shared" else AGENTS
        assert seen <= set(learners)
        assert all(learners[name]["behaviour_gap"] < 1e-4 for name in seen)
        assert all(learners[name]["mean_kl"] > 0 for name in seen)
    algo.stop()


@pytest.mark.parametrize("mode", ["frozen", "joint", "alternating", "separate"])
def test_recurrent_policies_too(ray_cluster: None, mode: str) -> None:
    model = {"use_gru": True, "lstm_cell_size": 8}
    algo = config(STEPS, model, adapter_mode=mode, update_scheme="simultaneous").build_algo()
    algo.train()
    for expected in MOVERS[mode]:
        before = weights(algo)
        learners = algo.train()["learners"]
        assert moved(before, weights(algo)) == expected | {"critic"}
        assert all(learners[name]["behaviour_gap"] < 1e-4 for name in AGENTS)
    assert all(learners[name]["adapter_divergence"] > 0 for name in AGENTS)
    joint = _observed(algo, 40)
    adapters = {name: algo.get_module(name) for name in sorted(AGENTS)}
    divergence = report_adapters(adapters, joint, len(joint.row), (0,)).divergence
    assert divergence is not None
    assert (divergence > 0).sum() == 6, "every two agents differ"
    algo.stop()


def test_the_continued_backbone_begins_without_moments(ray_cluster: None) -> None:
    algo = config(2 * STEPS, adapter_mode="continue_shared").build_algo()
    counts = []
    for _ in range(3):
        algo.train()
        optimizer = algo.learner_group._learner.get_optimizer("backbone")
        counts.append(int(next(iter(optimizer.state.values()))["step"]))
    assert counts[1] == 2 * counts[0]
    assert counts[2] == counts[0]
    algo.stop()


def test_what_the_differences_are(ray_cluster: None) -> None:
    """Of every parameter where networks are separate; full-rank ones of the linear layers in the control."""
    algo = config(0, adapter_mode="separate").build_algo()
    module = algo.learner_group._learner.module
    named = {target.name for target in module["agent_0"].lora.targets}
    assert named == {name for name, _ in module["backbone"].named_parameters()}
    algo.stop()
    algo = config(0, adapter_mode="dense_delta").build_algo()
    targets = algo.learner_group._learner.module["agent_0"].lora.targets
    assert all(target.rank is None and target.name.endswith("weight") for target in targets)
    algo.stop()


@pytest.mark.parametrize("stop_after", [2, 3], ids=["before the backbone's turn", "after it"])
def test_turns_go_on_after_a_resume(ray_cluster: None, tmp_path: Path, stop_after: int) -> None:
    whole = config(STEPS, adapter_mode="alternating").build_algo()
    for _ in range(stop_after):
        whole.train()
    checkpoint = whole.save_to_path(str(tmp_path / "checkpoint"))
    whole.train()
    resumed = LoRASA.from_checkpoint(checkpoint)
    resumed.train()
    assert_same_everywhere(whole, resumed)
    whole.stop()
    resumed.stop()


@pytest.mark.parametrize("overrides", [{}, {"agent_1": {"entropy_coeff": 0.1}}], ids=["alike", "one differs"])
def test_adapters_that_move_at_once_are_one_player(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any]
) -> None:
    """Unless one of them has settings of its own."""
    algo = (
        config(0, update_scheme="simultaneous")
        .multi_agent(algorithm_config_overrides_per_module=overrides)
        .build_algo()
    )
    learner, seen = algo.learner_group._learner, []
    players = learner._players
    monkeypatch.setattr(learner, "_players", lambda joint: seen.append(players(joint)) or seen[-1])
    algo.train()
    together = [isinstance(player.policy, Together) for player in seen[0].values()]
    assert together == ([False] * 3 if overrides else [True])
    algo.stop()


@pytest.mark.parametrize(
    ("mode", "scheme", "stay"),
    [
        ("frozen", "sequential", {"agent_1"}),
        ("frozen", "simultaneous", AGENTS),
        ("joint", "sequential", AGENTS | {"backbone"}),
    ],
)
def test_what_moves_at_once_stays_at_once(ray_cluster: None, mode: Any, scheme: str, stay: set[str]) -> None:
    """One adapter's gradient is not finite: all that would have moved with it are counted as skipped."""
    algo = config(0, adapter_mode=mode, update_scheme=scheme).build_algo()
    algo.train()
    weight = next(p for p in algo.learner_group._learner.module["agent_1"].parameters() if p.requires_grad)
    weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weights(algo)
    learners = algo.train()["learners"]
    skipped = {name for name in learners if learners[name].get("num_updates_skipped_lifetime")}
    assert skipped == stay
    assert moved(before, weights(algo)) == (AGENTS | {"critic"}) - stay
    algo.stop()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r'adapter_mode: given "thawed", expected .frozen. or .joint.'):
        config(0, adapter_mode="thawed").validate()


def test_nobody_is_to_move(ray_cluster: None) -> None:
    """The critic alone learns."""
    chosen = config(0, update_scheme="simultaneous").multi_agent(policies_to_train=[])
    algo = chosen.build_algo()
    start = weights(algo)
    result = algo.train()
    assert result["adapters_train"] == 1.0
    assert moved(start, weights(algo)) == {"critic"}
    algo.stop()
