"""The KL ball as neighbourhood: one natural-gradient step and a backtracking line search (HATRPO)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rllib_haml.haml.finite import NotFinite, check_gradient
from rllib_haml.haml.flat import flat_gradient, split_like

if TYPE_CHECKING:
    from rllib_haml.haml.sweep import Evaluation, MirrorStep

Product = Callable[[Tensor], Tensor]
_LEAST = {"cg_iterations": 1, "cg_damping": 0, "max_backtracks": 1, "accept_ratio": 0}


@dataclass(frozen=True)
class KLBall:
    """{π : E_s KL(π_k ‖ π) ≤ δ}, the mean over active rows (HATRPO: Zhong et al. 2024, appendix H).

    θ' = θ + αʲ √(2δ / xᵀHx) x, H x = g: g is the gradient of the whole batch's objective, H the damped
    Fisher matrix, j the first exponent whose step stays in the ball and gains enough. An entropy bonus is
    part of the objective: it enters both g and the gain that the line search demands. The player's
    optimizer, and so its learning rate, is not used. Takes second derivatives of the policy.

    Attributes:
        radius: δ, in nats.
        cg_iterations: Steps of the conjugate gradient for x.
        cg_damping: What is added to Fisher's diagonal. With little or none, the step leaves out directions
            along which KL does not change.
        backtrack_coeff: α.
        max_backtracks: Step lengths that are tried at most, the whole step among them.
        accept_ratio: The least gain that is accepted, over that of the objective's linearisation.

    Raises:
        ValueError: If the radius is not positive, the search's lengths do not shrink, or nothing could be
            solved or tried.
    """

    radius: float
    cg_iterations: int = 10
    cg_damping: float = 0.1
    backtrack_coeff: float = 0.8
    max_backtracks: int = 10
    accept_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not (isinstance(self.radius, int | float) and self.radius > 0):
            raise ValueError(f"KLBall: radius={self.radius!r}; expected nats above 0, such as 0.01.")
        if not 0 < self.backtrack_coeff < 1:
            raise ValueError(
                f"KLBall: backtrack_coeff={self.backtrack_coeff!r}; expected one between 0 and 1."
            )
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not (isinstance(value, int | float) and least <= value < math.inf):
                raise ValueError(f"KLBall: {name}={value!r}; expected a number of at least {least}.")

    def maximise(self, step: MirrorStep) -> dict[str, Tensor]:
        """Moves the policy, or leaves it bit for bit as it was if no step is accepted.

        Returns:
            `objective_gain` and `kl` of the move (0 if none was accepted); `line_search_accepted` (0 or 1);
            `backtracks`, how often the step was shortened (`max_backtracks` if none was accepted, 0 if the
            gradient is 0); `expected_gain`, the linearisation's at the last length; `grad_norm`;
            `policy_loss`, the negative objective where the search ended.

        Raises:
            NotFinite: The objective, its gradient or the KL's curvature, before anything moved.
        """
        parameters = step.player.policy.parameters()
        present = step.player.policy.evaluate(slice(None))
        surrogate = step.value(present)
        gradient = step.rows.all_reduce(flat_gradient(surrogate, parameters, retain_graph=True))
        before = step.rows.all_reduce(surrogate.detach().clone())
        norm = check_gradient(before, gradient, parameters)
        product = self._fisher(step, present)
        direction = conjugate_gradient(product, gradient, self.cg_iterations)
        curvature = direction @ product(direction)
        if not curvature.isfinite():
            raise NotFinite("curvature of the KL")
        still = {"objective_gain": 0.0, "kl": 0.0, "line_search_accepted": 0.0, "backtracks": 0.0}
        report = {k: before.new_tensor(v) for k, v in still.items()}
        report |= {"expected_gain": before.new_zeros(()), "grad_norm": norm}
        if curvature > 0:
            whole = direction * (2 * self.radius / curvature).sqrt()
            report |= self._search(step, whole, before, gradient @ whole)
        return report | {"policy_loss": -before - report["objective_gain"]}

    def _fisher(self, step: MirrorStep, present: Evaluation) -> Product:
        """v ↦ H v. Fisher's matrix is the Hessian of the mean KL(π_k ‖ π) at π = π_k."""
        parameters = step.player.policy.parameters()
        slope = flat_gradient(step.kl(present), parameters, create_graph=True)

        def product(v: Tensor) -> Tensor:
            own = flat_gradient(slope @ v, parameters, retain_graph=True)
            return step.rows.all_reduce(own) + self.cg_damping * v

        return product

    @torch.no_grad()
    def _search(self, step: MirrorStep, whole: Tensor, before: Tensor, slope: Tensor) -> dict[str, Tensor]:
        """Takes the longest αʲ `whole` that is accepted; `slope` is the linearised gain of `whole`."""
        policy, parameters = step.player.policy, step.player.policy.parameters()
        start = [p.clone() for p in parameters]
        share, expected = 1.0, slope
        for backtracks in range(self.max_backtracks):
            expected = share * slope
            for p, s, change in zip(parameters, start, split_like(share * whole, parameters), strict=True):
                p.copy_(s + change)
            new = policy.evaluate(slice(None))
            after, kl = step.rows.all_reduce(torch.stack([step.value(new), step.kl(new)]))
            gain = after - before
            if kl <= self.radius and gain > 0 and gain > self.accept_ratio * expected:
                report = {"objective_gain": gain, "kl": kl, "expected_gain": expected}
                report["backtracks"] = kl.new_tensor(backtracks)
                return report | {"line_search_accepted": kl.new_ones(())}
            share *= self.backtrack_coeff
        for p, s in zip(parameters, start, strict=True):
            p.copy_(s)
        return {"expected_gain": expected, "backtracks": before.new_tensor(self.max_backtracks)}


def conjugate_gradient(product: Product, b: Tensor, iterations: int) -> Tensor:
    """(P,) x with A x ≈ b, from x = 0, for A symmetric and not indefinite (Hestenes and Stiefel 1952).

    Where A is singular, up to rounding, it ends before the first direction that A sends to nothing: x is then
    what the directions before it make of b.

    Residuals are kept orthogonal. Rounding would make them lose it, and every iteration then multiplies what
    the order of a sum changes, such as how many learners share the rows.

    Args:
        product: v ↦ A v.
        b: (P,).
        iterations: At most; fewer once the residual is lost in rounding. 0 vectors give 0.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    square = b @ b
    negligible = torch.finfo(b.dtype).eps ** 2 * square
    seen: list[Tensor] = []
    largest = b.new_zeros(())
    for _ in range(iterations):
        if square <= negligible:
            break
        image = product(direction)
        curvature, length = direction @ image, direction @ direction
        largest = torch.maximum(largest, image.norm() / length.sqrt())
        if curvature <= torch.finfo(b.dtype).eps * largest * length:
            break
        seen.append(residual / square.sqrt())
        step = square / curvature
        x, residual = x + step * direction, residual - step * image
        basis = torch.stack(seen)
        residual = residual - (basis @ residual) @ basis
        following = residual @ residual
        direction = residual + following / square * direction
        square = following
    return x
