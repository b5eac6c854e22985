"""Search spaces in YAML: `{grid_search: [...]}`, and `{eval: "..."}` where it is allowed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rllib_haml.config.document import Document, KeyPath


def is_grid(value: Any) -> bool:
    """Whether `value` is a grid search."""
    return isinstance(value, dict) and set(value) == {"grid_search"}


def is_eval(value: Any) -> bool:
    """Whether `value` is a Python expression for Tune to evaluate."""
    return isinstance(value, dict) and set(value) == {"eval"}


def contains(value: Any, test: Callable[[Any], bool]) -> bool:
    """Whether `test` holds for `value` or for anything in it."""
    if test(value):
        return True
    return any(contains(child, test) for _, child in _children(value))


def expand(value: Any) -> list[Any]:
    """Every plain value that the search space `value` stands for; expressions give one sample."""
    if is_grid(value):
        return [plain for choice in value["grid_search"] for plain in expand(choice)]
    if is_eval(value):
        return [eval(value["eval"], {"random": random, "np": np})]
    if isinstance(value, dict):
        products = itertools.product(*map(expand, value.values()))
        return [dict(zip(value, product, strict=True)) for product in products]
    if isinstance(value, list):
        return [list(product) for product in itertools.product(*map(expand, value))]
    return [value]


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of a plain value, or of each value of a grid."""
    if is_grid(value) and isinstance(value["grid_search"], list):
        return {"grid_search": [map_leaves(choice, function) for choice in value["grid_search"]]}
    return function(value)


def check_searches(value: Any, path: KeyPath, document: Document, allow_eval: bool) -> bool:
    """Whether all searches in `value` are well formed and permitted; what is not is noted."""
    problem = None
    if is_grid(value) and not (isinstance(value["grid_search"], list) and value["grid_search"]):
        problem = "`grid_search` needs a list of values: {grid_search: [1, 2]}."
    elif is_eval(value):
        problem = _refused(value["eval"], allow_eval)
    if problem:
        document.error(path, problem)
        return False
    checks = [check_searches(child, (*path, key), document, allow_eval) for key, child in _children(value)]
    return all(checks)


def _refused(expression: Any, allowed: bool) -> str | None:
    if not allowed:
        hint = "If you trust this file, say `--allow-eval`; else write values or a grid_search."
        return f"the expression {expression!r} is not executed. {hint}"
    try:
        expand({"eval": expression})
    except Exception as error:
        return f"the expression {expression!r} fails: {error}. It may use `random` and `np`."
    return None


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from enumerate(value)
