"""Drifts, neighbourhoods and orders by name: what an instance of HAML is composed of.

A component is named (`clip`), named with arguments (`{type: kl, coeff: 1.0}`), named by an import path
(`{type: my_package.drifts:MyDrift, width: 2}`), or given as an object.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from rllib_haml.haml import (
    ClipDrift,
    Everywhere,
    JointClipDrift,
    KLBall,
    KLDrift,
    NoDrift,
    RandomOrder,
    SemiGreedyOrder,
)
from rllib_haml.nearest import did_you_mean

KNOWN: dict[str, dict[str, Any]] = {
    "drift": {"none": NoDrift, "clip": ClipDrift, "joint_clip": JointClipDrift, "kl": KLDrift},
    "neighbourhood": {"everywhere": Everywhere, "kl_ball": KLBall},
    "order": {"random": RandomOrder, "semi_greedy": SemiGreedyOrder},
}
# Arguments that a component takes from the config's key of the same name, unless it is given its own.
FROM_CONFIG = ("clip_param", "num_epochs", "minibatch_size", "grad_clip")


def component(kind: str, spec: Any, config: Any) -> Any:
    """The drift, neighbourhood or order (`kind`) that `spec` describes.

    Raises:
        ValueError: The name or an argument is unknown; the message says what there is.
    """
    if not isinstance(spec, str | Mapping):
        return spec
    given = {"type": spec} if isinstance(spec, str) else dict(spec)
    if "type" not in given:
        raise ValueError(f"{kind}={spec!r} has no `type`: name one of {', '.join(KNOWN[kind])}.")
    name = given.pop("type")
    maker = _maker(kind, name)
    takes = list(inspect.signature(maker).parameters)
    for argument in given:
        if argument not in takes:
            raise ValueError(f"{kind}: {name} takes no {argument!r}. {_hint(argument, takes)}")
    arguments = {key: getattr(config, key) for key in FROM_CONFIG if key in takes} | given
    missing = [
        key
        for key, parameter in inspect.signature(maker).parameters.items()
        if key not in arguments
        and parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if missing:
        example = ", ".join(f"{key}: ..." for key in missing)
        needed = " and ".join(missing)
        raise ValueError(f"{kind}: {name} needs its {needed}. Write {kind}: {{type: {name}, {example}}}.")
    try:
        return maker(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{kind}: {name} cannot be made of {given}: {error}") from error


def _maker(kind: str, name: Any) -> Any:
    known = KNOWN[kind]
    if name in known:
        return known[name]
    if isinstance(name, str) and (":" in name or "." in name):
        module, _, attribute = name.replace(":", ".").rpartition(".")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{kind}: {name!r} cannot be imported: {error}") from error
    raise ValueError(
        f"{kind}={name!r} is unknown. {_hint(name, known)} One of your own is named by its import path: "
        f"{{type: my_package.my_module:MyClass}}."
    )


def _hint(name: Any, options: Any) -> str:
    return f"{did_you_mean(name, options)}There are: {', '.join(options) or 'none'}."
