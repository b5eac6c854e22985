"""What somebody meant who mistyped a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, options: Iterable[str]) -> str | None:
    """The option that is most like `name`; None if none is like it."""
    return next(iter(difflib.get_close_matches(str(name), list(options), n=1, cutoff=0.5)), None)


def did_you_mean(name: object, options: Iterable[str]) -> str:
    """For the middle of a message: a question with a space behind it; "" if no option is like `name`."""
    near = nearest(name, options)
    return "" if near is None else f"Did you mean {near!r}? "
