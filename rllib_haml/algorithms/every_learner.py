"""Calls of all learners, whose errors are the caller's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def on_every_learner(algorithm: Any, function: Callable[[Any], Any]) -> list[Any]:
    """What `function` gives on each learner, in the learners' order.

    Raises:
        Exception: What a learner raised, or died of. RLlib's `foreach_learner` returns it among the answers.
    """
    answers = list(algorithm.learner_group.foreach_learner(function).result_or_errors)
    for answer in answers:
        if not answer.ok:
            raise answer.get()
    return [answer.get() for answer in answers]
