"""Neighbourhood operators U^i (HAML, Definition 11): where a player may move, and how the best is sought."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from rllib_haml.haml.finite import check_gradient
from rllib_haml.haml.flat import flat_gradient, split_like

if TYPE_CHECKING:
    from rllib_haml.haml.rows import JointRows
    from rllib_haml.haml.sweep import MirrorStep, Part


class Neighbourhood(Protocol):
    def maximise(self, step: MirrorStep) -> dict[str, Tensor]:
        """Moves `step.player`'s policy, in place, to (nearly) the best point of its neighbourhood.

        Returns:
            Figures of the search, scalars, equal on every learner.

        Raises:
            NotFinite: On every learner; the sweep then puts the policy back to where it was.
        """
        ...


@dataclass(frozen=True)
class Everywhere:
    """The whole policy space; the maximum is sought by epochs of stochastic gradient ascent.

    Without a row there is nothing to learn from: in a minibatch in which nobody acted a policy stays, and
    of several that move at once each whose agents did not act. An optimizer would move them by its momentum
    and its weight decay all the same.

    Attributes:
        num_epochs: Passes over the batch.
        minibatch_size: Joint steps of a minibatch over all learners; None is the whole batch.
        grad_clip: Bound on the gradient's global norm, or None.
    """

    num_epochs: int
    minibatch_size: int | None = None
    grad_clip: float | None = None

    def maximise(self, step: MirrorStep) -> dict[str, Tensor]:
        policy = step.player.policy
        if not step.rows.all_reduce(policy.active.sum()):
            return {name: step.factor.new_zeros(()) for name in ("policy_loss", "grad_norm")}
        report: dict[str, Tensor] = {}
        for epoch in range(self.num_epochs):
            for rows in step.minibatches(self.minibatch_size, epoch):
                loss = -step.objective(rows)
                bearing = step.bearing(rows)
                norm = descend(
                    loss, policy.parameters(), policy.optimizer, self.grad_clip, step.rows, bearing
                )
                if norm or not report:  # not of a minibatch without rows
                    report = {"policy_loss": loss.detach(), "grad_norm": norm}
        if report:
            report["policy_loss"] = step.rows.all_reduce(report["policy_loss"].clone())
        return report


def descend(
    loss: Tensor,
    parameters: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    grad_clip: float | None,
    rows: JointRows,
    bearing: Sequence[Part] = (),
) -> Tensor:
    """One optimizer step down the sum of all learners' `loss`.

    Parameters that the loss does not touch get a zero gradient, on every learner alike.

    Args:
        bearing: Parameters, each with the weight (scalar) of this learner's rows that bear on it. Those on
            which no learner's row bears are not given to the optimizer; without any others it does not step.

    Returns:
        The gradient's global norm before clipping.

    Raises:
        NotFinite: The loss or the gradient; nothing was stepped.
    """
    gradient = flat_gradient(loss, parameters)
    # Loss and weights ride along, so that all learners agree on whether it is finite, and on who stays.
    along = torch.stack([loss.detach(), *(weight for _, weight in bearing)]).to(gradient.dtype)
    flat, along = rows.all_reduce(torch.cat([gradient, along])).split([len(gradient), len(along)])
    norm = check_gradient(along[0], flat, parameters)
    each = zip(bearing, along[1:].tolist(), strict=True)
    staying = {p for (own, _), weight in each if not weight for p in own}
    if grad_clip is not None:
        flat = flat * (grad_clip / (norm + 1e-6)).clamp(max=1)
    for p, g in zip(parameters, split_like(flat, parameters), strict=True):
        p.grad = None if p in staying else g
    if len(staying) < len(parameters):
        optimizer.step()
    for p in parameters:
        p.grad = None
    return norm
