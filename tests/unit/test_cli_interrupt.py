"""SIGTERM does what Ctrl-C does, while a run lasts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_cli_resume import FRESH, an_experiment

from rllib_haml.cli import run
from rllib_haml.cli.interrupt import former_sigterm, sigterm_is_ctrl_c


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
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
