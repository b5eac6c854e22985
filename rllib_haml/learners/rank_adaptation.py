"""Ranks that fall, while adapters train, to what their differences turn out to need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

from rllib_haml.learners.collectives import broadcast
from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.adapter_mode import LOW_RANK_MODES, AdapterMode
from rllib_haml.modules.lora_rank import kept_ranks
from rllib_haml.nearest import did_you_mean


@dataclass(frozen=True)
class RankAdaptation:
    """What `adapt_rank` of LoRASA's config says.

    Tensors keep their shapes: a dropped direction is zero in both factors, where no gradient reaches it. So
    ranks only fall. (`rllib adapters export` leaves such directions out.) A layer that has not moved yet
    keeps all of its own.

    Attributes:
        energy: Share of ‖ΔW‖² (Frobenius) that a layer keeps at least, in (0, 1], if the budget allows.
        budget: Trained parameters of all adapters together, dense ones included; None: no limit. A layer
            that has not moved yet counts with one direction.
        every: Iterations of the adapters from one adaptation to the next.
    """

    energy: float = 0.99
    budget: int | None = None
    every: int = 20

    @classmethod
    def of(cls, values: Mapping[str, Any] | None, mode: AdapterMode = "frozen") -> RankAdaptation | None:
        """Reads the config's `adapt_rank`.

        Raises:
            ValueError: A key is unknown, or a value out of its range; or `adapter_mode` has no ranks.
        """
        if values is None:
            return None
        if mode not in LOW_RANK_MODES:
            raise ValueError(f"adapt_rank: adapter_mode={mode!r} trains no low-rank adapters: leave it out.")
        if not isinstance(values, Mapping):
            raise ValueError(f"adapt_rank={values!r}: expected keys such as {{energy: 0.99, every: 20}}.")
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                hint = did_you_mean(key, known)
                raise ValueError(f"adapt_rank has no key {key!r}. {hint}Known keys: {', '.join(known)}.")
        made = cls(**values)
        if (
            isinstance(made.energy, bool)
            or not isinstance(made.energy, int | float)
            or not 0 < made.energy <= 1
        ):
            raise ValueError(f"adapt_rank: energy={made.energy!r}: expected a share above 0, at most 1.")
        for key in ("budget", "every"):
            value = getattr(made, key)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (whole and value >= 1) and not (key == "budget" and value is None):
                raise ValueError(f"adapt_rank: {key}={value!r}: expected a whole number of at least 1.")
        return made

    def check(self, adapters: Mapping[str, Adapter]) -> None:
        """Looks whether the budget is enough for these adapters.

        Raises:
            ValueError: It does not hold one direction for each layer.
        """
        self._kept(adapters)

    def apply(self, adapters: Mapping[str, Adapter], optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        """Drops what is not needed, on all learners alike; of these layers the optimizer starts anew.

        What remains of a layer is turned into the directions of its singular vectors: moments of the former
        factors say nothing about these.
        """
        if not adapters:
            return
        kept = [
            (name, target, rank)
            for name, ranks in zip(adapters, self._kept(adapters), strict=True)
            for target, rank in ranks.items()
        ]
        device = next(next(iter(adapters.values())).parameters()).device
        # Learners have equal weights, but two kinds of machine may round a singular value to either side.
        decided = torch.tensor([rank for *_, rank in kept], device=device)
        broadcast([decided])
        for (name, target, _), rank in zip(kept, decided.tolist(), strict=True):
            lora = adapters[name].lora
            if rank < int(lora.live(target).sum()):
                lora.truncate(target, rank)
                broadcast(factor.data for factor in lora.factors(target))
                for factor in lora.factors(target):
                    optimizers[name].state.pop(factor, None)

    def _kept(self, adapters: Mapping[str, Adapter]) -> list[dict[Any, int]]:
        loras = [adapter.lora for adapter in adapters.values()]
        return kept_ranks(loras, energy=self.energy, budget=self.budget)
