"""A policy's parameters, and gradients over them, as one vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def flat_gradient(
    output: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False, retain_graph: bool = False
) -> Tensor:
    """(P,) gradient of the scalar `output`; 0 for what it does not touch, on every learner alike."""
    if not output.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in parameters])
    gradients = torch.autograd.grad(
        output,
        parameters,
        create_graph=create_graph,
        retain_graph=retain_graph or create_graph,
        allow_unused=True,
    )
    each = zip(parameters, gradients, strict=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in each])


def split_like(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The pieces of `flat` (P,), each of its parameter's shape."""
    pieces = flat.split([p.numel() for p in parameters])
    return [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]
