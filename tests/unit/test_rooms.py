"""Subpackages import each other in one direction."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from project import ROOT

PACKAGE = ROOT / "rllib_haml"


def imported(file: Path) -> Iterator[str]:
    """The rooms of this package that a file imports from, at its top or in a function."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name.split(".")[1] for name in names if name.startswith("rllib_haml."))


def test_no_room_is_below_itself() -> None:
    """A cycle would make it matter which one is imported first."""
    graph = {
        room.name: {other for file in room.rglob("*.py") for other in imported(file)} - {room.name}
        for room in PACKAGE.iterdir()
        if (room / "__init__.py").is_file()
    }
    assert {"modules", "sampling"} <= graph["learners"], "control: imports are seen"
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("haml") < order.index("sampling") < order.index("envs") < order.index("algorithms")
