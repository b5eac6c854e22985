"""A dead man's switch for environments: what never returns cannot be interrupted, only ended."""

from __future__ import annotations

import faulthandler
import logging
import threading
import time
from types import TracebackType

from rllib_haml.sampling.process import is_ray_worker

logger = logging.getLogger("rllib_haml")
_CHECKS = 4  # per limit


class StallGuard:
    """Ends this process when an environment's call lasts too long, while the guard is entered.

    The clock is `faulthandler`'s, a thread that needs no interpreter and hence fires even where the call
    holds the interpreter's lock; it writes every thread's traceback to the process's log. Ray then starts an
    env runner again. A process that is no Ray worker is the user's own, and is left alone.

    Args:
        limit: Seconds after which a call is given up (the process ends at most a quarter later); None: never.
        environment: Its name, for the log.
    """

    def __init__(self, limit: float | None, environment: str):
        self._limit = limit if is_ray_worker() else None
        self._environment = environment
        self._beats = 0
        self._left = threading.Event()
        self._arming = threading.Lock()  # nothing may arm the clock once the guard is left

    def beat(self) -> None:
        """A call has returned."""
        self._beats += 1

    def __enter__(self) -> StallGuard:
        if self._limit is not None:
            self._left = threading.Event()
            faulthandler.dump_traceback_later(1.25 * self._limit, exit=True)
            threading.Thread(target=self._watch, args=(self._left, self._limit), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._limit is not None:
            with self._arming:
                self._left.set()
                faulthandler.cancel_dump_traceback_later()

    def _watch(self, left: threading.Event, limit: float) -> None:
        seen, since, told = self._beats, time.monotonic(), False
        while not left.wait(limit / _CHECKS):
            now = time.monotonic()
            if self._beats != seen:
                seen, since, told = self._beats, now, False
                with self._arming:
                    if not left.is_set():
                        faulthandler.dump_traceback_later(limit, exit=True)
            elif now - since > limit / 2 and not told:
                told = True
                logger.error(
                    "Environment %s has not returned from reset() or step() for %.0f s. After %g s "
                    "(env_step_timeout_s) this process ends, with its traceback in the log.",
                    self._environment,
                    now - since,
                    limit,
                )
