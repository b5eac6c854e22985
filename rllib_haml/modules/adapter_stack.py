"""Several agents' adapters of one backbone as one network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import tree
from ray.rllib.core.columns import Columns
from torch.func import vmap

from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.lora import stack_effective

# On a CPU: more of them leave its cache, fewer are not worth the calls.
ROWS_AT_ONCE = 4096


class AdapterStack:
    """K agents' policies as one network: one batched product for each layer that they adapt.

    On a CPU, where their rows are many, a product for every few agents.

    Args:
        adapters: Each agent's, all `alike`. Agents of a group have the same one.

    Raises:
        ValueError: If two of them are not alike.
    """

    def __init__(self, adapters: Sequence[Adapter]):
        each = {id(adapter): adapter for adapter in adapters}
        self.adapters = list(each.values())
        different = [place for place, adapter in enumerate(self.adapters) if not alike(adapter, adapters[0])]
        if different:
            raise ValueError(
                f"Adapters {different} are not like the first: one network takes one backbone, equal "
                f"spaces, and the same parameters to adapt and to train."
            )
        places = {key: place for place, key in enumerate(each)}
        device = next(adapters[0].backbone.parameters()).device
        self._adapter_of = torch.tensor([places[id(adapter)] for adapter in adapters], device=device)

    def forward(self, batch: Any) -> dict[str, Any]:
        """What `Adapter.forward_train` returns, of all agents at once.

        Args:
            batch: What it takes, every tensor (K, R, ...).

        Returns:
            The same, every tensor (K, R, ...); differentiable in the adapters, and in the backbone's
            parameters if these train.
        """
        first = self.adapters[0]
        base = first.base_weights()
        adapted = stack_effective(base, [adapter.lora for adapter in self.adapters])
        if len(self.adapters) < len(self._adapter_of):
            adapted = {name: w.index_select(0, self._adapter_of) for name, w in adapted.items()}
        by_agent = ({name: 0 if name in adapted else None for name in base}, 0)
        forward = vmap(first.forward_with, in_dims=by_agent, chunk_size=self._agents_at_once(batch))
        return forward({**base, **adapted}, batch)

    def _agents_at_once(self, batch: Any) -> int | None:
        """How many agents a product is for; None is all. (K, R, ...), or of sequences (K, B, T, ...)."""
        obs = tree.flatten(batch[Columns.OBS])[0]
        rows = obs.shape[1 : 3 if self.adapters[0].is_stateful() else 2].numel()
        return max(1, ROWS_AT_ONCE // max(1, rows)) if obs.device.type == "cpu" else None


def in_stacks(adapters: Mapping[str, Adapter]) -> list[list[str]]:
    """The names of those that one network can hold, for as few networks as there must be."""
    stacks: list[list[str]] = []
    for name, adapter in adapters.items():
        same = [stack for stack in stacks if alike(adapter, adapters[stack[0]])]
        if same:
            same[0].append(name)
        else:
            stacks.append([name])
    return stacks


def alike(adapter: Adapter, other: Adapter) -> bool:
    """Whether one network can hold both."""
    adapted, others = ([(t.name, t.shape) for t in each.lora.targets] for each in (adapter, other))
    return (
        adapter.backbone is other.backbone
        and adapter.train_backbone == other.train_backbone
        and adapter.observation_space == other.observation_space
        and adapter.action_space == other.action_space
        and adapted == others
    )
