"""Optional dependencies: imported when an environment is made, asked for by name when absent."""

from __future__ import annotations

import contextlib
import importlib
import io
from types import ModuleType


def import_extra(module: str, *, extra: str) -> ModuleType:
    """Imports `module`, without the notices that it prints on import.

    Raises:
        ModuleNotFoundError: It is not installed; the message says what to type.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'this environment needs {error.name}, which is not installed: pip install "rllib-haml[{extra}]"',
            name=error.name,
        ) from error
