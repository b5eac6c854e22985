"""The line within an iteration adds up what env runners tell of the batch that is sampled now."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial

from rllib_haml.cli import long_iterations
from rllib_haml.sampling import under_way
from rllib_haml.sampling.under_way import UnderWay, forget_steps, steps_under_way


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Ray's key-value store."""
    kept: dict[str, str] = {}
    fake = SimpleNamespace(
        _internal_kv_initialized=lambda: True,
        _internal_kv_put=lambda key, value, overwrite: kept.update({key: value}),
        _internal_kv_get=kept.get,
        _internal_kv_list=lambda prefix: [key for key in kept if key.startswith(prefix)],
        _internal_kv_del=lambda prefix, del_by_prefix: [
            kept.pop(key) for key in [*kept] if key.startswith(prefix)
        ],
    )
    monkeypatch.setattr(under_way, "internal_kv", fake)
    return kept


def test_steps_of_all_env_runners_that_have_the_newest_weights(store: dict[str, str]) -> None:
    first, second, other = (
        UnderWay(f"/x/working_dirs/{place}", index, 100) for place, index in (("a", 1), ("a", 2), ("b", 1))
    )
    for env_runner in (first, second, other):
        for _ in range(5):
            env_runner.count(4, version=3)
        env_runner.tell()
    assert steps_under_way("a") == (40, 100)
    # One begins the next batch while the other one's answer is awaited.
    first.count(4, version=4)
    first.tell()
    assert steps_under_way("a") == (4, 100)
    forget_steps("a")
    assert steps_under_way("a") is None
    assert steps_under_way("b") == (20, 100)


@pytest.mark.parametrize("log_dir", [None, "/home/me/ray_results/HAPPO_team"])
def test_control_outside_of_tune_nobody_is_told(store: dict[str, str], log_dir: str | None) -> None:
    alone = UnderWay(log_dir, 0, 100)
    alone.count(4, version=1)
    alone.tell()
    assert store == {}


def test_a_line_comes_every_half_minute_of_an_iteration(
    store: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(long_iterations.time, "monotonic", lambda: clock.now)
    storage = SimpleNamespace(trial_dir_name="team_x_00001")
    trial: Any = SimpleNamespace(trial_id="x_00001", status=Trial.RUNNING, last_result={}, storage=storage)
    lines = long_iterations.LongIterations("team", 2)
    lines.on_trial_start(0, [trial], trial)
    env_runner = UnderWay("/x/working_dirs/team_x_00001", 1, 100)

    def said(seconds: float) -> list[str]:
        clock.now += seconds
        lines.on_step_end(1, [trial])
        return capsys.readouterr().out.splitlines()

    assert said(29) == []
    assert said(1) == [
        "team#00001  iteration 1, 30s: no step is told yet (RLlib's own env runners never tell)"
    ]
    env_runner.count(40, version=0)
    env_runner.tell()
    assert said(29) == []
    (line,) = said(1)
    assert line.endswith(
        "iteration 1, 1m00s: 40 / 100 steps of its batch sampled  0.7 steps/s, about 1m30s left"
    )
    env_runner.count(60, version=0)
    env_runner.tell()
    (line,) = said(30)
    assert line.endswith("100 / 100 steps of its batch sampled, then comes its update")
    lines.on_trial_result(1, [trial], trial, {})
    assert said(29) == [], "control: a result begins a new half minute"
    trial.status = Trial.TERMINATED
    assert said(60) == []
