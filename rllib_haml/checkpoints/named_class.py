"""The class that a pickle names, told without running anything of it."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from itertools import islice
from typing import Any

# They say nothing of what is made.
_SILENT = {"PROTO", "FRAME", "MARK"}


def named_class(data: bytes) -> tuple[str, str] | None:
    """Tells the module and the name of the class that RLlib pickles first, under the key `class`.

    None if the pickle begins in another way, is damaged, or would make that class by running code.
    """
    try:
        (start, _), (_, key), *begins = islice(_operations(data), 12)
    except ValueError:
        return None
    if (start, key) != ("EMPTY_DICT", "class"):
        return None
    match begins:
        case [(_, "ray.cloudpickle.cloudpickle"), (_, "_make_skeleton_class"), *made] if len(made) == 8:
            return _inherited(made)
        case [("GLOBAL", str(both)), after, *_]:
            module, name = both.split(" ", 1)
        case [(_, str(module)), (_, str(name)), ("STACK_GLOBAL", _), after, *_]:
            pass
        case _:
            return None
    # Else it is not the class itself, but what it returns.
    is_value = after[0] in ("SETITEM", "SETITEMS") or after[1] == "ctor_args_and_kwargs"
    return (module, name) if is_value else None


def _operations(data: bytes) -> Iterator[tuple[str, Any]]:
    """Operations with their arguments; what was said before and is referred to is said again."""
    memo: dict[Any, Any] = {}
    last = None
    for operation, argument, _ in pickletools.genops(data):
        if operation.name == "MEMOIZE":
            memo[len(memo)] = last
        elif operation.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = last
        elif operation.name not in _SILENT:
            last = memo.get(argument) if operation.name in ("GET", "BINGET", "LONG_BINGET") else argument
            yield operation.name, last


def _inherited(made: list[tuple[str, Any]]) -> tuple[str, str] | None:
    """The class of RLlib's behind a trial's: Ray makes one of the same name, which cloudpickle writes out."""
    match made:
        case [
            _,
            (_, "abc"),
            (_, "ABCMeta"),
            _,
            (_, own),
            (_, str(module)),
            (_, str(name)),
            ("STACK_GLOBAL", _),
        ]:
            return (module, name) if own == name else None
        case _:
            return None
