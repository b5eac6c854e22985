"""SIGTERM (`docker stop`, Kubernetes, Slurm) ends a run as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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


def _as_ctrl_c(*_: Any) -> None:
    # Tune's handler, or Python's. A shell's background jobs ignore SIGINT, and may not ignore this.
    if callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)
    else:
        raise KeyboardInterrupt


def _may_set() -> bool:
    return threading.current_thread() is threading.main_thread()
