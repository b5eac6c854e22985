"""The class that a pickle names, told without running anything of it."""

from __future__ import annotations

import pickletools
from itertools import islice

# They say nothing of what is made.
_SILENT = {"PROTO", "FRAME", "MARK", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"}


def named_class(data: bytes) -> tuple[str, str] | None:
    """Tells the module and the name of the class that RLlib pickles first, under the key `class`.

    None if the pickle begins in another way, is damaged, or would make that class by running code.
    """
    found = (op for op in pickletools.genops(data) if op[0].name not in _SILENT)
    try:
        begins = [(op.name, argument) for op, argument, _ in islice(found, 6)]
    except ValueError:
        return None
    match begins:
        case [("EMPTY_DICT", _), (_, "class"), ("GLOBAL", str(both)), after, *_]:
            module, name = both.split(" ", 1)
        case [("EMPTY_DICT", _), (_, "class"), (_, str(module)), (_, str(name)), ("STACK_GLOBAL", _), after]:
            pass
        case _:
            return None
    # Else it is not the class itself, but what it returns.
    is_value = after[0] in ("SETITEM", "SETITEMS") or after[1] == "ctor_args_and_kwargs"
    return (module, name) if is_value else None
