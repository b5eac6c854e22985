"""Trainable differences to a network's parameters: low-rank for its linear layers, dense for the rest.

LoRA (Hu et al. 2021, arXiv 2106.09685) for teams as in LoRASA (Zhang, Kapoor, Sun 2025, arXiv 2502.05573):
W_i = W + scaling · B_i A_i with one W for all agents i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rllib_haml.modules.lora_config import LoRAConfig
from rllib_haml.modules.lora_targets import Target, find_targets

Weights = dict[str, Tensor]


class LoRA(nn.Module):
    """One agent's differences; they are zero at the start.

    Parameters are named as PEFT names them in files: `<module>.lora_A.weight` (r, in) and
    `<module>.lora_B.weight` (out, r); dense ones are `<module>.delta_<parameter>`.

    Args:
        base: The network to adapt. Only names and shapes are read: it may lie on the meta device.

    Raises:
        ValueError: `config` does not fit `base` (see `find_targets`).
    """

    def __init__(self, base: nn.Module, config: LoRAConfig):
        super().__init__()
        self.config = config
        self.targets = find_targets(base, config)
        for target in self.targets:
            place = _place(self, target.module)
            if target.rank is None:
                place.register_parameter(f"delta_{target.leaf}", nn.Parameter(torch.empty(target.shape)))
            else:
                out, inputs = target.shape
                place.lora_A = _Factor(target.rank, inputs)
                place.lora_B = _Factor(out, target.rank)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Starts anew: differences that are exactly zero."""
        for target in self.targets:
            if target.rank is None:
                self.dense(target).zero_()
            else:
                _INITS[self.config.init_lora_weights](*self.factors(target))

    def factors(self, target: Target) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r)."""
        place = self.get_submodule(target.module)
        return place.lora_A.weight, place.lora_B.weight  # pyright: ignore[reportAttributeAccessIssue, reportReturnType]

    def dense(self, target: Target) -> Tensor:
        """The difference itself, of the parameter's shape."""
        return self.get_submodule(target.module).get_parameter(f"delta_{target.leaf}")

    def live(self, target: Target) -> Tensor:
        """(r,) bool: the directions that can learn; where both factors are zero, so are both gradients."""
        a, b = (factor.detach() for factor in self.factors(target))
        return a.any(1) | b.any(0)

    def live_ranks(self) -> dict[Target, int]:
        """How many directions of each low-rank difference can learn."""
        return {target: int(self.live(target).sum()) for target in self.targets if target.rank is not None}

    def num_live_parameters(self) -> int:
        """How many parameters are trained, without those of directions that cannot learn."""
        dense = sum(target.num_parameters for target in self.targets if target.rank is None)
        return dense + sum(rank * sum(target.shape) for target, rank in self.live_ranks().items())

    def deltas(self) -> Weights:
        """Parameter name → ΔW of its shape; differentiable."""
        return {target.name: self._delta(target) for target in self.targets}

    def _delta(self, target: Target) -> Tensor:
        if target.rank is None:
            return self.dense(target)
        a, b = self.factors(target)
        return (b * target.scaling) @ a

    def effective(self, base: Mapping[str, Tensor]) -> Weights:
        """All of the network's parameters: those of `base`, W + ΔW where there is a difference."""
        return {**base, **{target.name: self._add(target, base[target.name]) for target in self.targets}}

    def effective_part(self, path: str, part: nn.Module) -> Weights:
        """What it adapts of the module `part`, which lies at `path`: W + ΔW under the names there."""
        weights = {f"{path}.{name}": weight for name, weight in part.named_parameters()}
        adapted = [target for target in self.targets if target.name in weights]
        return {t.name.removeprefix(f"{path}."): self._add(t, weights[t.name]) for t in adapted}

    def _add(self, target: Target, weight: Tensor) -> Tensor:
        if target.rank is None:
            return weight + self.dense(target)
        a, b = self.factors(target)
        return torch.addmm(weight, b * target.scaling, a)

    @torch.no_grad()
    def assign(self, deltas: Mapping[str, Tensor]) -> None:
        """Takes the differences nearest to `deltas`, in Frobenius norm, that its ranks can express.

        By Eckart-Young these are truncated singular value decompositions; each factor has the root of
        the singular values. Directions that a ΔW does not have are as after `reset`, so that they can be
        learnt: were both factors zero there, so would be their gradients, for ever.

        Raises:
            ValueError: If `deltas` has other names or shapes than its own differences.
        """
        expected = {target.name: target.shape for target in self.targets}
        if (given := {name: tuple(delta.shape) for name, delta in deltas.items()}) != expected:
            raise ValueError(
                f"These differences are of other parameters: given {given}, expected {expected}."
            )
        self.reset()
        for target in self.targets:
            if target.rank is None:
                self.dense(target).copy_(deltas[target.name])
            else:
                _assign_factors(*self.factors(target), deltas[target.name].double() / target.scaling)

    @torch.no_grad()
    def truncate(self, target: Target, rank: int) -> None:
        """Keeps the `rank` directions of a low-rank difference that hold most of it (Eckart-Young).

        The others are zero in both factors from now on, and so are their gradients: training leaves them
        so. Of a difference of zero the first live directions stay as they are, to be learnt.
        """
        a, b = self.factors(target)
        delta = b.double() @ a.double()
        if delta.any():
            a.zero_()
            b.zero_()
            _assign_factors(a[:rank], b[:, :rank], delta)
        else:
            dropped = self.live(target).nonzero().flatten()[rank:]
            a[dropped], b[:, dropped] = 0.0, 0.0


def stack_effective(base: Mapping[str, Tensor], loras: Sequence[LoRA]) -> Weights:
    """What N agents adapt of one base, W + ΔW_i as (N, ...): one batched product for each layer.

    Differences may be of different ranks: narrower factors are followed by zeros.

    Raises:
        ValueError: If the agents adapt different parameters.
    """
    adapted_by_all(loras)
    each = zip(*(lora.targets for lora in loras), strict=True)
    return {alike[0].name: _stack(base[alike[0].name], loras, alike) for alike in each}


def adapted_by_all(loras: Sequence[LoRA]) -> list[str]:
    """The names of the parameters that these agents adapt.

    Raises:
        ValueError: If they are not the same for all, with equal shapes.
    """
    first, *others = ([(target.name, target.shape) for target in lora.targets] for lora in loras)
    for adapted in others:
        if adapted != first:
            different = sorted({name for name, _ in set(first) ^ set(adapted)})
            raise ValueError(f"The agents adapt different parameters: {', '.join(different)}.")
    return [name for name, _ in first]


def _stack(weight: Tensor, loras: Sequence[LoRA], targets: Sequence[Target]) -> Tensor:
    ranks = [target.rank for target in targets if target.rank is not None]
    if not ranks:
        return weight + torch.stack([lora.dense(t) for lora, t in zip(loras, targets, strict=True)])
    if len(ranks) < len(targets):
        return torch.stack([lora._add(t, weight) for lora, t in zip(loras, targets, strict=True)])
    widest, left, right = max(ranks), [], []
    for lora, target, rank in zip(loras, targets, ranks, strict=True):
        a, b = lora.factors(target)
        right.append(nn.functional.pad(a, (0, 0, 0, widest - rank)))
        left.append(nn.functional.pad(b * target.scaling, (0, widest - rank)))
    return torch.baddbmm(weight[None], torch.stack(left), torch.stack(right))


class _Factor(nn.Module):
    """A matrix under the name that PEFT gives it."""

    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns))


def _place(root: nn.Module, path: str) -> nn.Module:
    """The empty module at `path`; made, with those on the way to it, if it is not there."""
    for name in path.split("."):
        if name not in dict(root.named_children()):
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    return root


def _assign_factors(a: Tensor, b: Tensor, delta: Tensor) -> None:
    left, sizes, right = torch.linalg.svd(delta, full_matrices=False)
    noise = max(delta.shape) * torch.finfo(a.dtype).eps * sizes[0]
    rank = int((sizes[: len(a)] > noise).sum())
    root = sizes[:rank].sqrt()
    a[:rank] = (root[:, None] * right[:rank]).to(a.dtype)
    b[:, :rank] = (left[:, :rank] * root).to(b.dtype)


def _kaiming(weight: Tensor) -> None:
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


def _lorasa(a: Tensor, b: Tensor) -> None:
    nn.init.zeros_(a)
    _kaiming(b)


def _peft(a: Tensor, b: Tensor) -> None:
    _kaiming(a)
    nn.init.zeros_(b)


def _gaussian(a: Tensor, b: Tensor) -> None:
    nn.init.normal_(a, std=1 / len(a))
    nn.init.zeros_(b)


def _orthogonal(a: Tensor, b: Tensor) -> None:
    """PEFT's up to a rotation of the rank, which in floating point would leave B A a little off zero."""
    half = len(a) // 2
    nn.init.zeros_(a)
    nn.init.zeros_(b)
    nn.init.normal_(a[:half], std=0.1)
    nn.init.normal_(b[:, half:], std=0.1)


_INITS: dict[str | bool, Callable[[Tensor, Tensor], None]] = {
    "lorasa": _lorasa,
    True: _peft,
    "gaussian": _gaussian,
    "orthogonal": _orthogonal,
}
