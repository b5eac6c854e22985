"""SuperSuit wrappers by name, as YAML gives them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from pettingzoo import ParallelEnv

from rllib_haml.nearest import did_you_mean

REFUSED = {
    "black_death_v3": (
        "it ends an episode one step late, with zeros and with both flags set, so that a time "
        "limit is taken for a failure. Leave it out: agents that die become inactive here, and "
        "their team plays on"
    ),
    "pad_action_space_v0": (
        "it executes actions that an agent does not have as action 0, without a mask, so policies "
        "learn from what they did not do. Leave it out: agents keep their own action spaces here"
    ),
}
"""Wrappers that corrupt training, and what to do instead."""

_VECTORISERS = ("vec_env", "vectorize")


def wrap(env: ParallelEnv, wrappers: Sequence[Any]) -> ParallelEnv:
    """Applies SuperSuit wrappers in their order.

    Args:
        env: The environment.
        wrappers: Each a name, or a mapping {name: arguments}: a mapping of keyword arguments, a
            list of positional ones, or one positional argument. For example
            `[{"frame_stack_v1": 4}, "agent_indicator_v0"]`.

    Raises:
        ValueError: A wrapper is refused or unknown, or is not written as above.
    """
    if isinstance(wrappers, str) or not isinstance(wrappers, Sequence):
        raise ValueError(f"wrappers is {wrappers!r}; expected a list")
    supersuit = importlib.import_module("supersuit")
    for entry in wrappers:
        name, args, kwargs = _parse(entry)
        function = _find(supersuit, name)
        try:
            env = function(env, *args, **kwargs)
        except (TypeError, AssertionError) as error:
            raise ValueError(f"wrapper {name} cannot be applied: {error}") from error
    return env


def _parse(entry: Any) -> tuple[str, list[Any], dict[str, Any]]:
    if isinstance(entry, str):
        return entry, [], {}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError(f"wrapper {entry!r}: expected a name or one {{name: arguments}}")
    ((name, arguments),) = entry.items()
    if isinstance(arguments, dict):
        return name, [], arguments
    if isinstance(arguments, list):
        return name, arguments, {}
    return name, [] if arguments is None else [arguments], {}


def _find(supersuit: Any, name: str) -> Any:
    if name in REFUSED:
        raise ValueError(f"wrapper {name} is refused: {REFUSED[name]}")
    known = [
        key
        for key in dir(supersuit)
        if key.rpartition("_v")[2].isdigit()
        and callable(getattr(supersuit, key))
        and key not in REFUSED
        and not any(word in key for word in _VECTORISERS)
    ]
    if name not in known:
        hint = did_you_mean(name, known)
        raise ValueError(f"unknown SuperSuit wrapper {name!r}. {hint}There are: {', '.join(known)}")
    return getattr(supersuit, name)
