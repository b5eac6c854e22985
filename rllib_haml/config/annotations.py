"""Checking plain YAML values against the type annotations of RLlib's builder methods."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin

_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))


def accepts(annotation: Any, value: Any) -> bool:
    """Whether `value` is of the annotated type. An int is a float; a bool is neither."""
    origin, args = get_origin(annotation), get_args(annotation)
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
        return isinstance(value, (int, float))
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
    members = _members(annotation)
    return str not in members and any(
        is_class(member)
        or is_callable(member)
        or isinstance(member, ForwardRef)
        or (inspect.isclass(member) and member.__module__.partition(".")[0] not in _DATA_MODULES)
        for member in members
    )


_DATA_MODULES = ("builtins", "typing", "collections", "types")


def admits_null(annotation: Any) -> bool:
    """Whether `null` is a value of the annotated type."""
    return annotation is Any or type(None) in _members(annotation)


def describe(annotation: Any) -> str:
    """The annotated type in a user's words, without `null`."""
    words = [_word(member) for member in _members(annotation) if member is not type(None)]
    return " or ".join(dict.fromkeys(words)) or "null"


def _members(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return get_args(annotation)
    return (annotation,)


def _word(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if is_class(annotation) or is_callable(annotation) or isinstance(annotation, ForwardRef):
        return "an import path (`package.module.Name`)"
    kind = origin or annotation
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        return "a mapping"
    if inspect.isclass(kind) and issubclass(kind, Collection) and kind is not str:
        return f"a list of {_PLURALS[args[0]]}" if args and args[0] in _PLURALS else "a list"
    return _WORDS.get(kind, "an import path (`package.module.Name`)")


_PLURALS = {int: "integers", float: "numbers", str: "strings"}

_WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    Any: "anything",
}
