"""Calls a function in a process of its own, since what hangs in C can only be ended with its process."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from rllib_haml.config.errors import ConfigError

Tell = Callable[[str], None]

# Forked from a process that has imported RLlib and made no environment: each begins at once, and clean.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["rllib_haml.cli.preload"])


class Lost(Exception):
    """A process gave no result.

    Attributes:
        told: The last that it told.
        hung: Nothing was heard from it for too long; else it ended by itself.
    """

    def __init__(self, text: str, told: str, *, hung: bool) -> None:
        super().__init__(text)
        self.told, self.hung = told, hung


def call_apart(function: Callable[..., Any], *args: Any, silence_s: float) -> Any:
    """Returns what `function(tell, *args)` gives in a process of its own, which ends with all it started.

    Args:
        function: One that can be imported; it calls `tell(what it has done)` now and then.
        silence_s: Seconds without a word, once it has begun, after which the process is killed.

    Raises:
        ConfigError: The function raised it.
        Lost: The process was killed, or ended without a result; other exceptions stand on stderr.
    """
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_child, args=(theirs, function, args))
    process.start()
    theirs.close()
    told: str | None = None
    try:
        while True:
            # Until it begins, it waits for imports and for its turn on a busy machine.
            if not wait([ours, process.sentinel], None if told is None else silence_s):
                raise Lost(f"nothing came back within {silence_s:g} s", told or "", hung=True)
            kind: str
            value: Any
            try:
                kind, value = ours.recv() if ours.poll() else ("ended", None)
            except EOFError:
                kind, value = "ended", None
            if kind == "told":
                told = value
            elif kind == "returned":
                return value
            elif kind == "raised":
                raise value
            else:
                process.join()
                raise Lost(f"the process ended with {_reason(process.exitcode or 0)}", told or "", hung=False)
    finally:
        for kill in (os.killpg, os.kill):  # the first fails where the child has not come to lead its group
            with suppress(ProcessLookupError):
                kill(process.pid or 0, signal.SIGKILL)
        process.join()
        ours.close()


def _child(answers: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.setpgid(0, 0)

    def tell(what: str) -> None:
        answers.send(("told", what))

    tell("")
    try:
        answer = "returned", function(tell, *args)
    except ConfigError as error:
        answer = "raised", error
    answers.send(answer)


def _reason(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    return f"signal {-exit_code} ({signal.Signals(-exit_code).name})"
