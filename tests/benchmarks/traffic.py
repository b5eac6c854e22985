"""What env runners and learners send in an iteration, and how much of it are arrays that must move."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import ray
import tree
from ray import cloudpickle


@dataclass
class Traffic:
    """Of the iterations that were recorded.

    Attributes:
        answers: What the env runners returned: fragments, metrics and version of each.
        weights: What was put where every env runner reads it.
        states: What the weights were taken from: the answer of one learner.
    """

    answers: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)

    @property
    def fragments(self) -> list[Any]:
        return [fragment for answer in self.answers for fragment in answer.samples]


@contextmanager
def recorded(algo: Any) -> Iterator[Traffic]:
    """What `algo`, with remote env runners, sends while this is open."""
    traffic, put = Traffic(), ray.put
    groups = [group for group in (algo.eval_env_runner_group,) if group is not None]

    def synchronised(sync: Callable[..., None]) -> Callable[..., None]:
        def called(*args: Any, **kwargs: Any) -> None:
            with mock.patch.object(ray, "put", lambda x: traffic.weights.append(x) or put(x)):
                sync(*args, **kwargs)

        return called

    with ExitStack() as stack:
        for owner, method, kept in (
            (algo.sampler, "_answers", traffic.answers.extend),
            (algo.learner_group, "get_state", traffic.states.append),
        ):
            stack.enter_context(mock.patch.object(owner, method, _keeping(getattr(owner, method), kept)))
        for owner, method in [(algo.sampler, "take_weights"), *((group, "sync_weights") for group in groups)]:
            stack.enter_context(mock.patch.object(owner, method, synchronised(getattr(owner, method))))
        yield traffic


def _keeping(do: Callable[..., Any], keep: Callable[[Any], None]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        found = do(*args, **kwargs)
        keep(found)
        return found

    return called


def sent(what: Any) -> int:
    """Bytes of `what` as it travels."""
    return len(cloudpickle.dumps(what, protocol=5))


def needed(fragments: list[Any]) -> int:
    """Bytes of the fragments' arrays."""
    leaves = tree.flatten([vars(fragment) for fragment in fragments])
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, np.ndarray))


def parameter_bytes(algo: Any) -> dict[str, int]:
    """Of each module on the learners."""

    def count(learner: Any) -> dict[str, int]:
        modules = learner.module.items()
        return {name: sum(p.nbytes for p in module.parameters()) for name, module in modules}

    return next(iter(algo.learner_group.foreach_learner(count))).get()
