"""Which unit tests run which lines, and for how long: what run.py chooses by. See README.md."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest
from run import FILES, OPTIONS, file_of


class Recorder:
    """Books lines and seconds on tests; those of setting up on the test's file, which may share it."""

    def __init__(self, measured: coverage.Coverage):
        self._measured = measured
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        with self._booked(file_of(item.nodeid)):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        with self._booked(item.nodeid):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    @contextlib.contextmanager
    def _booked(self, name: str) -> Iterator[None]:
        self._measured.switch_context(name)
        start = time.process_time()
        yield
        self.seconds[name] += time.process_time() - start
        self._measured.switch_context("")


measured = coverage.Coverage(data_file=None, include=FILES)
recorder = Recorder(measured)
measured.start()
pytest.main([*OPTIONS, *(sys.argv[2:] or ["tests/unit"])], plugins=[recorder])
measured.stop()
data = measured.get_data()
known = {
    "lines": {os.path.relpath(file): data.contexts_by_lineno(file) for file in data.measured_files()},
    "seconds": recorder.seconds,
    "failed": recorder.failed,
    "modules": [name for name in sys.modules if name.split(".")[0] != "rllib_haml"],
}
Path(sys.argv[1]).write_text(json.dumps(known))
