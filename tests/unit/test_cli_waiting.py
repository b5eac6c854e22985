"""A trial that cannot start says why now and then; who waits for nodes and who does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial

from rllib_haml.cli import resources, run
from rllib_haml.config.errors import ConfigError

NODES = [{"CPU": 2.0, "node:10.0.0.1": 1.0, "memory": 1e9}]


def trial(status: str, *bundles: dict[str, float]) -> Any:
    return SimpleNamespace(status=status, placement_group_factory=PlacementGroupFactory([*bundles]))


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """What is printed, with its second, in `seconds` of Tune's steps with the given trials."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(resources.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(resources, "alive_nodes", lambda: NODES)
    monkeypatch.setattr(resources.ray, "available_resources", lambda: {"CPU": 0.5})

    def run_for(seconds: int, *trials: Any) -> list[tuple[int, str]]:
        lines = resources.WaitingLines("team")
        lines.setup()
        printed = []
        for second in range(1, seconds + 1):
            clock.now += 1
            lines.on_step_end(second, [*trials])
            text = capsys.readouterr().err
            printed += [(second, text)] if text else []
        return printed

    return run_for


def test_a_trial_without_room_says_every_half_minute_what_is_missing(said: Any) -> None:
    printed = said(70, trial(Trial.PENDING, {"CPU": 1}, {"CPU": 3}))
    assert [second for second, _ in printed] == [31, 62]
    expected = "team: waiting: a trial asks for 4 CPU, and Ray has 2 (1 node of 2 CPU)"
    assert all(expected in text for _, text in printed)


def test_a_trial_that_others_keep_waiting_says_what_is_free(said: Any) -> None:
    ((_, text),) = said(40, trial(Trial.PENDING, {"CPU": 2}))
    assert "a trial asks for 2 CPU (0.5 free). The rest is in use: by others, or" in text


def test_a_trial_for_which_all_is_free_is_starting(said: Any) -> None:
    ((_, text),) = said(40, trial(Trial.PENDING, {"CPU": 0.5}))
    assert "a trial asks for 0.5 CPU (0.5 free). All of it is free: actors are starting." in text


@pytest.mark.parametrize("status", [Trial.RUNNING, Trial.TERMINATED, Trial.ERROR])
def test_nothing_is_said_while_trials_run_or_after_they_have_ended(said: Any, status: str) -> None:
    waiting = [trial(Trial.PENDING, {"CPU": 2})] if status == Trial.RUNNING else []
    assert said(70, trial(status, {"CPU": 2}), *waiting) == []


@pytest.mark.parametrize(
    "asked, cluster, autoscaler, waits",
    [
        (None, None, True, False),
        (None, "auto", False, False),
        (None, "auto", True, True),
        (True, "auto", False, True),
        (False, "auto", True, False),
    ],
)
def test_who_waits_for_nodes(
    monkeypatch: pytest.MonkeyPatch, asked: bool | None, cluster: str | None, autoscaler: bool, waits: bool
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(run, "trial_shortage", lambda experiment: "a trial asks for 4 CPU, and Ray has 2.")
    monkeypatch.setattr(run, "autoscaler_is_on", lambda: autoscaler)
    options: Any = SimpleNamespace(wait_for_nodes=asked, ray_address=cluster)
    experiment: Any = SimpleNamespace(name="team")
    if waits:
        run._check_resources([experiment], options)
    else:
        with pytest.raises(ConfigError, match="asks for 4 CPU") as refusal:
            run._check_resources([experiment], options)
        assert ("--wait-for-nodes" in str(refusal.value)) is (cluster is not None)
