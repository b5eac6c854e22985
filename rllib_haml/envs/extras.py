"""Optional dependencies: imported when an environment is made, asked for by name when absent."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Iterator
from types import ModuleType


def import_extra(module: str, *, extra: str) -> ModuleType:
    """Imports `module`, without the notices that it prints on import.

    Raises:
        ModuleNotFoundError: It is not installed; the message says what to type.
    """
    try:
        with _silence():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'this environment needs {error.name}, which is not installed: pip install "rllib-haml[{extra}]"',
            name=error.name,
        ) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Swallows what is printed, also past a module (JaxMARL) that puts Python's own streams back."""
    nowhere = io.StringIO()
    own = sys.__stdout__, sys.__stderr__
    sys.__stdout__ = sys.__stderr__ = nowhere  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
            yield
    finally:
        sys.__stdout__, sys.__stderr__ = own  # pyright: ignore[reportAttributeAccessIssue]
