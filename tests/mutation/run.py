"""Whether the unit tests notice slips of the hand in the mathematics. See README.md."""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import importlib
import json
import os
import resource
import select
import signal
import types
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from operators import Mutant, mutants, mutated, sample

PATTERNS = ["haml/*", "learners/*", "modules/lora*"]
PATTERNS += [f"modules/adapter{part}" for part in ("", "_stack", "_fit", "_drift")]
FILES = sorted(str(path) for pattern in PATTERNS for path in Path("rllib_haml").glob(f"{pattern}.py"))
OPTIONS = ["-q", "-s", "-p", "no:cacheprovider", "--timeout=0"]
ALIVE = "ALIVE"
# A mutant may take so many times the seconds of CPU that its tests took without it, and some seconds more.
PATIENCE, GRACE = 5, 60


class Chosen:
    """The tests that run what a mutant changes, quick files first, and the first of them that fails."""

    def __init__(self, mutant: Mutant, known: dict[str, Any]):
        lines, (first, last) = known["lines"].get(mutant.file, {}), mutant.lines
        names = {name for line, each in lines.items() if first <= int(line) <= last for name in each}
        possible = {test for test in known["seconds"] if "::" in test} - set(known["failed"])
        self.tests = {test for test in possible if test in names or file_of(test) in names}
        self._seconds: dict[str, float] = defaultdict(float)
        for test in self.tests | {file_of(test) for test in self.tests}:
            self._seconds[file_of(test)] += known["seconds"].get(test, 0.0)
        self.limit = int(PATIENCE * sum(self._seconds.values()) + GRACE)
        self.first = ""

    def run(self, session: pytest.Session) -> str:
        session.config.pluginmanager.register(self)
        items = [item for item in session.items if item.nodeid in self.tests]
        items.sort(key=lambda item: self._seconds[file_of(item.nodeid)])
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.first:
                break
        return self.first or ALIVE

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.first:
            self.first = report.nodeid


class Trials:
    """Takes the place of pytest's loop over the tests, once these and the package are imported."""

    def __init__(self, asked: list[Mutant], known: dict[str, Any], out: str):
        self._asked, self._known, self._out = asked, known, out
        self._living: dict[Any, list[types.FunctionType]] = defaultdict(list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for function in gc.get_objects():
            if isinstance(function, types.FunctionType):
                self._living[_place(function.__code__)].append(function)
        gc.freeze()  # or every fork would copy all objects as soon as it collects garbage
        for mutant in self._asked:
            chosen = Chosen(mutant, self._known)
            found = self._try(mutant, chosen, session) if chosen.tests else f"{ALIVE}, no test runs it"
            with open(self._out, "a", newline="") as file:
                csv.writer(file).writerow([mutant.file, mutant.line, mutant.change, found])
        return True

    def _try(self, mutant: Mutant, chosen: Chosen, session: pytest.Session) -> str:
        """In a fork: the first failing test or what else ended it, or `ALIVE`."""
        answer, question = os.pipe()
        child = os.fork()
        if not child:
            os.setsid()
            log = os.open(f"{self._out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (chosen.limit, chosen.limit + 5))
            self._exchange(mutant)
            os.write(question, chosen.run(session).encode())
            os._exit(0)
        os.close(question)
        with open(answer) as told:
            # What waits for ever, such as learners for each other, uses no CPU.
            ended = select.select([told], [], [], 20 * chosen.limit)[0]
            found = told.read() if ended else "it waits for ever"
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        return found or ("a loop without end" if status == signal.SIGXCPU else f"it ended with {status}")

    def _exchange(self, mutant: Mutant) -> None:
        """Gives the living function the mutant's code: nothing need be imported anew."""
        codes = _codes(compile(mutated(mutant), os.path.abspath(mutant.file), "exec"))
        new = next(code for code in codes if code.co_firstlineno == mutant.function)
        for function in self._living[_place(new)]:
            function.__code__ = new


def _place(code: types.CodeType) -> tuple[str, int, str]:
    return code.co_filename, code.co_firstlineno, code.co_name


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Of all functions and classes in it, outer ones first."""
    for inner in (c for c in code.co_consts if isinstance(c, types.CodeType)):
        yield inner
        yield from _codes(inner)


def file_of(test: str) -> str:
    return test.split("::")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("known", help="what record.py wrote")
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", help="instead of a sample, a table's living ones")
    parser.add_argument("--out", default="/tmp/mutants.csv", help="the table, which grows")
    given = parser.parse_args()
    known = json.loads(Path(given.known).read_text())
    asked = sample(FILES, given.count, given.seed)
    if given.again:
        rows = csv.reader(Path(given.again).read_text().splitlines())
        alive = {(file, change) for file, _, change, found in rows if found.startswith(ALIVE)}
        asked = [m for file in FILES for m in mutants(file) if (m.file, m.change) in alive]
    for name in known["modules"]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    files = sorted({file_of(test) for mutant in asked for test in Chosen(mutant, known).tests})
    pytest.main([*OPTIONS, *files], plugins=[Trials(asked, known, given.out)])


if __name__ == "__main__":
    main()
