"""A checkpoint every ten minutes of each trial, and the three last are kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.result import SHOULD_CHECKPOINT
from test_cli_resume import FRESH

from rllib_haml.cli import run, timed_checkpoints
from rllib_haml.cli.timed_checkpoints import TimedCheckpoints
from rllib_haml.config.document import read_text
from rllib_haml.config.parse import parse_experiments


class Run:
    """Trials whose iterations last as long as is said; Tune saves where the result asks for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5.0
        monkeypatch.setattr(timed_checkpoints.time, "monotonic", lambda: self.now)
        self.callback = TimedCheckpoints()

    def start(self, name: str) -> Any:
        trial: Any = SimpleNamespace(trial_id=name)
        self.callback.on_trial_start(0, [], trial)
        return trial

    def saves(self, trial: Any, seconds: float) -> bool:
        """Whether the iteration that ends now is followed by a checkpoint."""
        self.now += seconds
        result: dict[str, Any] = {}
        self.callback.on_trial_result(0, [], trial, result)
        if result.get(SHOULD_CHECKPOINT):
            self.callback.on_trial_save(0, [], trial)
        return bool(result.get(SHOULD_CHECKPOINT))


def test_one_is_made_when_ten_minutes_have_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Run(monkeypatch)
    trial = clock.start("a")
    assert [clock.saves(trial, 200) for _ in range(7)] == [False, False, True, False, False, True, False]


def test_it_is_made_of_every_iteration_that_lasts_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Run(monkeypatch)
    trial = clock.start("a")
    assert [clock.saves(trial, 700) for _ in range(3)] == [True, True, True]


def test_each_trial_has_its_own_clock_which_any_checkpoint_and_restart_sets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Run(monkeypatch)
    first = clock.start("a")
    assert not clock.saves(first, 500)
    second = clock.start("b")
    clock.callback.on_trial_save(0, [], first)  # by its frequency
    assert not clock.saves(first, 500)
    assert not clock.saves(second, 50)
    assert clock.saves(second, 60), "control"
    again = clock.start("a")  # after a failure, from its last checkpoint
    assert not clock.saves(again, 500)


@pytest.mark.parametrize(
    "said, timed", [("", True), ("checkpoint_freq: 500, ", True), ("checkpoint_freq: 0, ", False)]
)
def test_a_run_has_them_unless_it_wants_none(
    said: str, timed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    text = f"team: {{run: PPO, env: CartPole-v1, {said}storage_path: {tmp_path}}}"
    (experiment,) = parse_experiments(read_text(text, "x.yaml"))
    given: dict[str, Any] = {}
    monkeypatch.setattr(run.tune, "RunConfig", lambda **settings: given.update(settings))
    monkeypatch.setattr(run, "Tuner", lambda *_, **__: None)
    run._new_tuner(experiment, FRESH)
    assert any(isinstance(callback, TimedCheckpoints) for callback in given["callbacks"]) == timed
    assert given["checkpoint_config"].num_to_keep == 3
