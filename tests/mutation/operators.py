"""Mutants: what a slip of the hand could make of one expression or statement of a function."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

_PAIRS = [
    "Add Sub",
    "Mult Div",
    "BitAnd BitOr",
    "And Or",
    "Lt LtE",
    "Gt GtE",
    "Eq NotEq",
    "Is IsNot",
    "In NotIn",
]
_OPERATORS = dict(pair.split() for pair in _PAIRS) | dict(pair.split()[::-1] for pair in _PAIRS)
_OPERATORS |= {"FloorDiv": "Mult", "Mod": "Mult", "Pow": "Mult", "BitXor": "BitAnd"}
_NAMES = ["min max", "sum mean", "any all", "zeros ones", "zeros_like ones_like", "new_zeros new_ones"]
_CALLS = dict(pair.split() for pair in _NAMES) | dict(pair.split()[::-1] for pair in _NAMES)
# Without these methods a value is another one of the same shape.
_LEFT_OUT = {"abs", "square", "sqrt", "exp", "log", "relu", "tanh", "detach", "clone", "double", "bool"}


class Mutant(NamedTuple):
    """A file's `number`th change, in the statement on `lines` of the function that begins at `function`."""

    file: str
    number: int
    line: int
    lines: tuple[int, int]
    function: int
    change: str


def mutants(file: str, tree: ast.Module | None = None) -> Iterator[Mutant]:
    """All mutants of a file. While one is yielded, `tree` is that mutant."""
    number = 0
    for siblings, index, lines, function in _places(tree or ast.parse(Path(file).read_text())):
        node = siblings[index]
        for new in [*_variants(node), *_without_a_keyword(node)]:
            change = " -> ".join(ast.unparse(n).split("\n")[0] for n in (node, new))
            siblings[index] = ast.copy_location(new, node)
            yield Mutant(file, number, node.lineno, lines, function, change)
            siblings[index] = node
            number += 1


def mutated(mutant: Mutant) -> ast.Module:
    tree = ast.parse(Path(mutant.file).read_text())
    methods = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and "super()" in ast.unparse(n)]
    next(other for other in mutants(mutant.file, tree) if other.number == mutant.number)
    for method in methods:
        # A function's new code must close over what the old one did: its class, for `super()`.
        method.body += ast.parse("if False: super").body
    return ast.fix_missing_locations(tree)


def sample(files: Iterable[str], count: int, seed: int) -> list[Mutant]:
    """About `count` mutants, of each file in proportion to how many it has, and at least one."""
    of_files = {file: list(mutants(file)) for file in files}
    share = count / sum(map(len, of_files.values()))
    quotas = {file: min(len(each), max(1, round(share * len(each)))) for file, each in of_files.items()}
    drawn = (random.Random(f"{seed} {file}").sample(of_files[file], quota) for file, quota in quotas.items())
    return [mutant for each in drawn for mutant in each]


def _places(owner: ast.AST, lines: tuple[int, int] = (0, 0), function: int = 0) -> Iterator[Any]:
    """Every node within a function that may be changed, as (its list or its owner's fields, its index there,
    the lines of its statement or that one's header, the function's first line)."""
    for field, value in ast.iter_fields(owner):
        within = function
        if isinstance(owner, ast.FunctionDef):
            if field != "body":
                continue
            within = function or min(n.lineno for n in (owner, *owner.decorator_list))
        siblings, indices = (value, range(len(value))) if isinstance(value, list) else (vars(owner), [field])
        for index in indices:
            node, own = siblings[index], lines
            if not isinstance(node, ast.AST) or field == "annotation" or _is_fixed(node):
                continue
            if isinstance(node, ast.stmt):
                inner = getattr(node, "body", [])
                own = (node.lineno, max(node.lineno, inner[0].lineno - 1) if inner else node.end_lineno or 0)
            if within and isinstance(node, ast.expr | ast.stmt):
                yield siblings, index, own, within
            if not isinstance(node, ast.Raise | ast.JoinedStr):
                yield from _places(node, own, within)


def _is_fixed(node: ast.AST) -> bool:
    """Docstrings, logs, and `strict=`, which says what holds."""
    match node:
        case ast.Expr(ast.Constant() | ast.Call(ast.Attribute(ast.Name("logger")))) | ast.keyword("strict"):
            return True
    return False


def _variants(node: Any) -> Iterator[ast.AST]:  # noqa: C901 - a table
    match node:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op).__name__ in _OPERATORS:
            yield _with(node, op=getattr(ast, _OPERATORS[type(op).__name__])())
        case ast.Compare(ops=[op]):
            yield _with(node, ops=[getattr(ast, _OPERATORS[type(op).__name__])()])
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(str(value)):
            yield ast.Constant(f"XX{value}")
        case ast.IfExp(test=test) | ast.If(test=test) | ast.While(test=test):
            yield _with(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Assign():
            yield _with(node, value=ast.Constant(None))
        case ast.AugAssign(target=target, value=value):
            yield ast.copy_location(ast.Assign([target], value), node)
        case ast.Expr(ast.Call()) | ast.Raise() | ast.Break() | ast.Continue():
            yield ast.Pass()
        case ast.Call(func=ast.Attribute(value, name) as func) if name in _CALLS:
            yield _with(node, func=_with(func, attr=_CALLS[name]))
        case ast.Call(func=ast.Name(name)) if name in _CALLS:
            yield _with(node, func=ast.Name(_CALLS[name], ast.Load()))
        case ast.Call(func=ast.Attribute(value, name), args=[]) if name in _LEFT_OUT:
            yield value


def _without_a_keyword(node: Any) -> Iterator[ast.AST]:
    for keyword in getattr(node, "keywords", []):
        if keyword.arg not in (None, "strict"):
            yield _with(node, keywords=[k for k in node.keywords if k is not keyword])


def _with(node: ast.AST, **changed: object) -> ast.AST:
    return ast.copy_location(type(node)(**{**dict(ast.iter_fields(node)), **changed}), node)
