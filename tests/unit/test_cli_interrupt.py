"""SIGTERM does what Ctrl-C does, while a run lasts: trials write checkpoints, then it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from test_cli_resume import FRESH, an_experiment

from rllib_haml.cli import interrupt, run
from rllib_haml.cli.interrupt import (
    EndsWithCheckpoints,
    UntilInterrupted,
    asked_to_end,
    former_sigterm,
    sigterm_is_ctrl_c,
)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in interrupt._SIGNALS}
    yield
    interrupt._asked.clear()
    for number, handler in kept.items():
        signal.signal(number, handler)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_whoever_listens_to_ctrl_c_hears_sigterm() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    with former_sigterm():
        sigterm_is_ctrl_c()
        terminate()
    assert heard == [signal.SIGINT]


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_where_nobody_listens_it_interrupts(before: Any) -> None:
    """Also in a shell's background, where Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, before)
    with former_sigterm():
        sigterm_is_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            terminate()


def test_a_run_that_is_stopped_as_it_starts_exits_with_130_and_leaves_no_handler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start_ray(options: Any) -> None:
        """Ray sets a handler of its own."""
        signal.signal(signal.SIGTERM, lambda *_: pytest.fail("Ray's handler"))

    former = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run, "start_ray", start_ray)
    monkeypatch.setattr(run, "_warn_of_lost_work", lambda experiments: None)
    monkeypatch.setattr(run, "_check_resources", lambda *_: terminate())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert run.run_experiments([an_experiment(tmp_path)], FRESH) == 130
    assert "interrupted at once" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is former


def a_trial(status: str = Trial.RUNNING, is_restoring: bool = False) -> Any:
    return SimpleNamespace(status=status, is_restoring=is_restoring)


class Loop:
    """What Tune's loop is to the callback: a handler of SIGINT that ends it, and steps."""

    def __init__(self, *trials: Any) -> None:
        self.trials, self.ended, self.now = list(trials), False, 1000.0
        signal.signal(signal.SIGINT, self._end)
        self.callback = EndsWithCheckpoints("team")
        self.callback.setup()

    def _end(self, *_: Any) -> None:
        self.ended = True

    def step(self, seconds: float = 0.1) -> bool:
        self.now += seconds
        self.callback.on_step_end(0, self.trials)
        return self.ended


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(*trials: Any) -> Loop:
        made = Loop(*trials)
        monkeypatch.setattr(interrupt.time, "monotonic", lambda: made.now)
        return made

    return make


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_loop_when_every_trial_has_written(
    number: int, loop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, starting = a_trial(), a_trial(), a_trial(Trial.PENDING)
    tune = loop(first, second, starting)
    assert not tune.step(3600), "control: nobody asked"
    os.kill(os.getpid(), number)
    assert not tune.step()
    first.status = Trial.PAUSED
    assert not tune.step(), "the second has not written yet"
    starting.status = Trial.RUNNING
    second.status = Trial.PAUSED
    assert tune.step(), "what was starting has nothing to lose"
    assert "team: ends with a checkpoint after this iteration, within 30 s" in capsys.readouterr().out


def test_an_iteration_that_lasts_is_waited_for_30_seconds(
    loop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = loop(a_trial(), a_trial(Trial.PAUSED))
    terminate()
    assert not tune.step()
    assert not tune.step(29.9)
    assert tune.step(0.2)
    assert "team: no checkpoint of 1 trials: an iteration lasts longer than 30 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    "trials", [[], [a_trial(Trial.PENDING)], [a_trial(is_restoring=True)], [a_trial(Trial.ERROR)]]
)
def test_where_there_is_nothing_to_lose_it_ends_at_once(trials: list[Any], loop: Any) -> None:
    tune = loop(*trials)
    terminate()
    assert tune.step()


def test_a_trial_that_was_saving_as_the_signal_came_is_not_waited_for(loop: Any) -> None:
    trial = a_trial()
    tune = loop(trial)
    terminate()
    assert not tune.step()
    tune.callback.on_trial_save(0, tune.trials, trial)
    assert tune.step()


@pytest.mark.parametrize("again", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_interrupts_at_once(again: int, loop: Any) -> None:
    loop(a_trial())
    terminate()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), again)


def test_a_signal_between_experiments_interrupts(loop: Any) -> None:
    tune = loop(a_trial())
    tune.callback.on_experiment_end([])
    with pytest.raises(KeyboardInterrupt):
        terminate()


def test_trials_are_paused_after_a_signal_and_none_is_begun(loop: Any) -> None:
    """Tune pauses a trial with a checkpoint; a trial that was stopped would count as ended."""
    scheduler, waiting = UntilInterrupted(), a_trial(Trial.PENDING)
    controller = SimpleNamespace(get_trials=lambda: [waiting])
    loop(a_trial())
    assert scheduler.on_trial_result(controller, a_trial(), {}) == TrialScheduler.CONTINUE
    assert scheduler.choose_trial_to_run(controller) is waiting
    terminate()
    assert scheduler.on_trial_result(controller, a_trial(), {}) == TrialScheduler.PAUSE
    assert scheduler.choose_trial_to_run(controller) is None


def test_no_experiment_begins_after_a_signal(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the one that it came to ended by itself in its last iteration."""
    begun: list[Any] = []

    def one(experiment: Any, options: Any) -> int:
        begun.append(experiment)
        terminate()
        return 0

    monkeypatch.setattr(run, "_run", one)
    loop()
    experiments: Any = ["first", "second"]
    assert run._run_all(experiments, FRESH) == run.INTERRUPTED
    assert begun == ["first"]
    assert asked_to_end()
