"""All or nothing: a move with a loss, a gradient or weights that are not finite leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rllib_haml.haml.flat import split_like

if TYPE_CHECKING:
    from rllib_haml.haml.rows import JointRows
    from rllib_haml.haml.sweep import Evaluation, MirrorStep


class NotFinite(ArithmeticError):
    """A move met NaN or infinity; every learner finds the same.

    Attributes:
        what: "loss", "gradient", "weights", ...
        parameter: The tensor whose gradient or weights these are; None if it concerns no single one.
    """

    def __init__(self, what: str, parameter: Tensor | None = None):
        super().__init__(f"the {what} is not finite")
        self.what, self.parameter = what, parameter


def all_finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite; the sum is quick to get, and finite only then."""
    return math.isfinite(float(tensor.detach().sum())) or bool(tensor.isfinite().all())


def check_gradient(loss: Tensor, flat: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The norm of the gradient `flat` (P,) of `loss`, both summed over the learners.

    Raises:
        NotFinite: "loss", or "gradient" with the first parameter concerned.
    """
    norm = flat.norm()
    # One look per step, at a number that all entries went into.
    if not math.isfinite(float(loss + norm)):
        if not all_finite(loss):
            raise NotFinite("loss")
        pieces = zip(parameters, split_like(flat, parameters), strict=True)
        # The norm of finite numbers can overflow.
        worst = next((p for p, g in pieces if not all_finite(g)), None)
        raise NotFinite("gradient", worst)
    return norm


def check_finite(what: str, values: Tensor, rows: JointRows) -> None:
    """
    Raises:
        NotFinite: On every learner, if any learner's `values` are not finite.
    """
    if rows.all_reduce(values.new_tensor(not all_finite(values))):
        raise NotFinite(what)


def check_weights(tensors: Sequence[Tensor]) -> None:
    """
    Raises:
        NotFinite: "weights", with the first tensor concerned.
    """
    for tensor in tensors:
        if not all_finite(tensor):
            raise NotFinite("weights", tensor)


@contextmanager
def all_or_nothing(
    parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, buffers: Sequence[Tensor] = ()
) -> Iterator[None]:
    """Undoes what happens inside, bit for bit, if it raises `NotFinite`.

    Args:
        parameters: What moves.
        optimizer: What moves them; its state is undone too.
        buffers: What else changes.
    """
    tensors = [*parameters, *buffers]
    before = [t.detach().clone() for t in tensors]
    moments = {
        p: {k: v.clone() if isinstance(v, Tensor) else v for k, v in state.items()}
        for p, state in optimizer.state.items()
    }
    try:
        yield
    except NotFinite:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
        for p, state in optimizer.state.items():
            state.clear()
            state.update(moments.get(p, {}))
        raise


def attempt(step: MirrorStep) -> tuple[dict[str, Tensor], Evaluation, NotFinite | None]:
    """Lets a player move, or leaves it where it is if that gives anything that is not finite.

    Returns:
        The neighbourhood's figures, the policy on all local rows afterwards, and what was not finite.
    """
    policy = step.player.policy
    try:
        with all_or_nothing(policy.parameters(), policy.optimizer):
            report = step.player.neighbourhood.maximise(step)
            check_weights(policy.parameters())
            with torch.no_grad():
                after = policy.evaluate(slice(None))
            check_finite("log-probability", after.log_prob[policy.active], step.rows)
        return report, after, None
    except NotFinite as fault:
        return {}, step.before, _origin(step, fault)


def _origin(step: MirrorStep, fault: NotFinite) -> NotFinite:
    """What already was not finite when the player was about to move, if anything, else `fault`."""
    given = {
        "advantage": step.advantage,
        "compound ratio of the policies before it": step.factor,
        "log-probability before the update": step.before.log_prob[step.player.policy.active],
    }
    try:
        for what, values in given.items():
            check_finite(what, values, step.rows)
    except NotFinite as origin:
        return origin
    return fault
