"""What a value may be, said once, by a type annotation: `Annotated[float, Range(0, 1)]`."""

from __future__ import annotations

import enum
import inspect
import json
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))


@dataclass(frozen=True)
class Range:
    """An interval of numbers; None is no bound. `open_low` excludes the lower end.

    Infinity lies in none, but for one that is `endless`.
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    endless: bool = False

    def contains(self, value: float) -> bool:
        """Whether `value` lies inside; NaN lies nowhere."""
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        below = value <= self.high if self.high is not None else self.endless or value < float("inf")
        return above and below

    def describe(self, name: str) -> str:
        """The interval as an inequality in `name`."""
        low = "" if self.low is None else f"{self.low:g} {'<' if self.open_low else '<='} "
        high = "" if self.high is None else f" <= {self.high:.10g}"
        return f"{low}{name}{high}"


@dataclass(frozen=True)
class Schedule:
    """A list of [timestep, value], timesteps rising from 0, values within a range and finite."""

    values: Range

    def contains(self, pairs: Any) -> bool:
        """Whether `pairs`, a list, is such a schedule."""
        if len(pairs) < 2 or not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            return False
        if not all(accepts(float, number) for pair in pairs for number in pair):
            return False
        times = [time for time, _ in pairs]
        rises = times[0] == 0 and all(a <= b for a, b in pairwise(times)) and times[-1] < float("inf")
        return rises and all(self.values.contains(value) for _, value in pairs)

    def describe(self, name: str) -> str:
        """What such a schedule of `name` looks like."""
        return f"[[0, first], [timestep, value], ...] with rising timesteps and {self.values.describe(name)}"


POSITIVE = Annotated[float, Range(0, open_low=True)]
NON_NEGATIVE = Annotated[float, Range(0)]
SHARE = Annotated[float, Range(0, 1)]
COUNT = Annotated[int, Range(1)]
WHOLE = Annotated[int, Range(0)]
# A rate that falls may end at 0.
RATE = POSITIVE | Annotated[list, Schedule(Range(0))]
COEFFICIENT = NON_NEGATIVE | Annotated[list, Schedule(Range(0))]


def or_null(annotation: Any) -> Any:
    """That, or null."""
    return annotation | None


def plain(value: Any) -> Any:
    """`value` as YAML would have it: without numpy's numbers and arrays, and members of enumerations."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    if type(value) is dict:
        return {key: plain(item) for key, item in value.items()}
    return value.value if isinstance(value, enum.Enum) else value


def mistake(name: str, annotation: Any, value: Any, default: Any) -> str | None:
    """What is said of a `value` that is none for `name`; None if it is one.

    Args:
        name: The key that has the value.
        annotation: What it may be.
        value: As `plain` has it.
        default: Of the key; whatever it is, it may be given.
    """
    if (type(value) is type(default) and value == default) or accepts(annotation, value):
        return None
    said = f"given {written(value)}, expected {describe(annotation, name)}."
    if isinstance(default, (bool, int, float, str)):
        said += f" The default is `{name}: {written(default)}`."
    return said


def check_fields(made: Any) -> None:
    """Looks at every field of a dataclass by its annotation; numpy's numbers become Python's.

    Raises:
        ValueError: One is not what it may be.
    """
    hints = get_type_hints(type(made), include_extras=True)
    for field in fields(made):
        value = plain(getattr(made, field.name))
        object.__setattr__(made, field.name, value)
        if said := mistake(field.name, hints[field.name], value, field.default):
            raise ValueError(f"{field.name}: {said}")


def written(value: Any) -> str:
    """`value` as one would type it in YAML."""
    return json.dumps(value, default=repr)


def is_plain(annotation: Any) -> bool:
    """Whether only numbers, words, true, false and null, and schedules, are of this type."""
    return all(
        member in (bool, int, float, str, type(None)) or get_origin(member) in (Literal, Annotated)
        for member in members(annotation)
    )


def accepts(annotation: Any, value: Any) -> bool:
    """Whether `value` is of the annotated type. An int is a float; a bool is neither."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return accepts(args[0], value) and all(mark.contains(value) for mark in args[1:])
    if annotation is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(accepts(arg, value) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if isinstance(annotation, (ForwardRef, str, TypeVar)) or getattr(annotation, "_is_protocol", False):
        # A protocol, or a name imported for type checkers only: some object, hence nothing YAML can write.
        return not isinstance(value, _PLAIN)
    if is_class(annotation):
        return inspect.isclass(value)
    if is_callable(annotation):
        return callable(value)
    return _accepts_data(origin or annotation, args, value)


def _accepts_data(kind: Any, args: tuple[Any, ...], value: Any) -> bool:
    if kind is None:
        return value is None
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    if kind is float:
        return isinstance(value, (int, float)) and value == value
    if not inspect.isclass(kind):
        return True
    if issubclass(kind, Mapping):
        return isinstance(value, dict) and all(
            accepts(key_type, key) and accepts(value_type, item)
            for key_type, value_type in [args or (Any, Any)]
            for key, item in value.items()
        )
    if issubclass(kind, tuple) and args and args[-1] is not ...:
        return isinstance(value, (list, tuple)) and len(value) == len(args) and all(map(accepts, args, value))
    if issubclass(kind, Collection) and not issubclass(kind, str):
        element = args[0] if args else Any
        return isinstance(value, (list, tuple)) and all(accepts(element, item) for item in value)
    return isinstance(value, kind)


def is_class(annotation: Any) -> bool:
    """Whether the annotation asks for a class (`type`, `Type[X]`)."""
    return annotation is type or get_origin(annotation) is type


def is_callable(annotation: Any) -> bool:
    """Whether the annotation asks for a function."""
    return Callable in (annotation, get_origin(annotation))


def wants_import(annotation: Any) -> bool:
    """Whether a string is to be read as an import path: an object is asked for, never a string."""
    kinds = members(annotation)
    return str not in kinds and any(
        is_class(member)
        or is_callable(member)
        or isinstance(member, ForwardRef)
        or (inspect.isclass(member) and member.__module__.partition(".")[0] not in _DATA_MODULES)
        for member in kinds
    )


_DATA_MODULES = ("builtins", "typing", "collections", "types")


def admits_null(annotation: Any) -> bool:
    """Whether `null` is a value of the annotated type."""
    return annotation is Any or type(None) in members(annotation)


def describe(annotation: Any, name: str = "value") -> str:
    """The annotated type in a user's words, without `null`; `name` is what stands in inequalities."""
    words = [_word(member, name) for member in members(annotation) if member is not type(None)]
    return " or ".join(dict.fromkeys(words)) or "null"


def members(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def _word(annotation: Any, name: str) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return f"{_word(args[0], name)} ({args[1].describe(name)})"
    if origin is Literal:
        return " or ".join(map(repr, args))
    if is_class(annotation) or is_callable(annotation) or isinstance(annotation, ForwardRef):
        return "an import path (`package.module.Name`)"
    kind = origin or annotation
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        return "a mapping"
    if inspect.isclass(kind) and issubclass(kind, Collection) and kind is not str:
        return f"a list{_elements(args[0])}" if args else "a list"
    return _WORDS.get(kind, "an import path (`package.module.Name`)")


def _elements(annotation: Any) -> str:
    kind, *marks = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    inside = "".join(f" ({mark.describe('each')})" for mark in marks)
    return f" of {_PLURALS[kind]}{inside}" if kind in _PLURALS else ""


_PLURALS = {int: "integers", float: "numbers", str: "strings"}

_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Any: "anything",
}
