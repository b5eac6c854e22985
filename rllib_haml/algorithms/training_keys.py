"""A misspelt keyword of `training`, found before Python finds it without saying what was meant."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

from rllib_haml._typing import NotProvided
from rllib_haml.nearest import nearest


def refuse_unknown(config_class: type, keys: Iterable[str]) -> None:
    """Raises a TypeError for the first of `keys` that no `training` of `config_class` takes."""
    parameters = _parameters(config_class)
    for key in keys:
        if key not in parameters:
            # RLlib's deprecated keys have another default: they are nobody's meaning.
            known = [name for name, parameter in parameters.items() if parameter.default is NotProvided]
            near = nearest(key, known)
            hint = f"Did you mean `{near}`?" if near else f"It takes: {', '.join(sorted(known))}."
            raise TypeError(f"{config_class.__name__}.training() takes no {key!r}. {hint}")


def _parameters(config_class: type) -> dict[str, inspect.Parameter]:
    """What `training` takes, in the class itself and in those that it hands further keys to."""
    return {
        name: parameter
        for cls in reversed(config_class.__mro__)
        if "training" in vars(cls)
        for name, parameter in inspect.signature(vars(cls)["training"]).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
