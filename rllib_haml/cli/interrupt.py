"""Ctrl-C and SIGTERM (`docker stop`, Kubernetes) end a run once its trials have written checkpoints."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

GRACE_S = 30.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Signals are the process's, and Tune copies the callbacks and schedulers that it is given.
_asked = threading.Event()


def asked_to_end() -> bool:
    """Whether a signal came since the present experiment began."""
    return _asked.is_set()


@contextmanager
def former_sigterm() -> Iterator[None]:
    """Puts back what SIGTERM did before; Ray and `sigterm_is_ctrl_c` set it anew."""
    former = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if _may_set():
            signal.signal(signal.SIGTERM, former)


def sigterm_is_ctrl_c() -> None:
    """From now on. Call after `ray.init`, whose handlers print C++ traces and leave at once."""
    if _may_set():
        signal.signal(signal.SIGTERM, _as_ctrl_c)


class EndsWithCheckpoints(Callback):
    """Ends Tune's loop after a signal: when every trial that ran has a checkpoint, 30 s later at the latest.

    It needs `UntilInterrupted` as the scheduler, which has trials write them. A second signal interrupts at
    once.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def setup(self, *args: Any, **info: Any) -> None:
        """Takes over the signals from Tune, which has just begun to listen."""
        _asked.clear()
        self._deadline: float | None = None
        self._unsaved: list[Trial] = []
        if _may_set():
            self._end_loop: Any = signal.getsignal(signal.SIGINT)
            for number in _SIGNALS:
                signal.signal(number, _ask)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Ends the loop if it is time; Tune calls this many times a second."""
        if not _asked.is_set():
            return
        if self._deadline is None:
            self._begin_to_wait(trials)
        self._unsaved = [trial for trial in self._unsaved if trial.status == Trial.RUNNING]
        if self._unsaved and time.monotonic() < (self._deadline or 0.0):
            return
        if self._unsaved:
            click.echo(
                f"{self._name}: no checkpoint of {len(self._unsaved)} trials: an iteration lasts longer than "
                f"{GRACE_S:g} s."
            )
        self._end_loop(signal.SIGINT, None)

    def _begin_to_wait(self, trials: list[Trial]) -> None:
        """Those that are starting, or read a checkpoint, have nothing to lose."""
        self._deadline = time.monotonic() + GRACE_S
        self._unsaved = [t for t in trials if t.status == Trial.RUNNING and not t.is_restoring]
        if self._unsaved:
            click.echo(
                f"{self._name}: ends with a checkpoint after this iteration, within {GRACE_S:g} s; "
                f"a second Ctrl-C ends at once."
            )

    def on_trial_save(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial that was saving as the signal came has no more to write."""
        self._unsaved = [other for other in self._unsaved if other is not trial]

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Between experiments a signal interrupts."""
        if _may_set():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, _as_ctrl_c)


class UntilInterrupted(FIFOScheduler):
    """Runs trials in their order, and after a signal pauses each at the end of its iteration.

    A trial that Tune pauses writes a checkpoint first, and stays there while others still write theirs.
    """

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        return FIFOScheduler.PAUSE if _asked.is_set() else FIFOScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        return None if _asked.is_set() else super().choose_trial_to_run(tune_controller)


def _ask(*_: Any) -> None:
    if _asked.is_set():
        raise KeyboardInterrupt
    _asked.set()


def _as_ctrl_c(*_: Any) -> None:
    # A shell's background jobs ignore SIGINT, and may not ignore this.
    if callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)
    else:
        raise KeyboardInterrupt


def _may_set() -> bool:
    return threading.current_thread() is threading.main_thread()
