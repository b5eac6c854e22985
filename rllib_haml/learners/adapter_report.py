"""How far the adapters have drifted apart, on the states that the team visits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import tree
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_haml.haml.rows import generator
from rllib_haml.learners.batch import ACTIVE, JointBatch
from rllib_haml.learners.collectives import all_reduce
from rllib_haml.modules.actor import ACTION_MASK
from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.adapter_drift import AdapterAudit, audit_adapters, divergences

# Over all agents and learners.
MAX_OBSERVATIONS = 256


def report_adapters(
    adapters: Mapping[str, Adapter], joint: JointBatch, total: int, key: tuple[int, ...]
) -> AdapterAudit:
    """The audit after an update, alike on every learner.

    Policies are compared on what all acting agents observed in a few random joint steps of the batch,
    unless they are recurrent, or have unequal spaces or masks.

    Args:
        total: Joint steps of all learners.
        key: Seeds the choice of the steps.
    """
    audit, each = audit_adapters(adapters), list(adapters.values())
    masked = {ACTION_MASK in columns for columns in joint.policies.values()}
    if not are_comparable(each) or len(masked) > 1:
        return audit
    batch, count = _visited(joint, _some(joint, total, key), next(each[0].parameters()).dtype)
    found = divergences(each, batch) if count else np.zeros((len(each), len(each)))
    device = joint.row.device
    sums = all_reduce(torch.as_tensor(count * found, device=device))
    counts = int(all_reduce(torch.tensor(count, device=device)))
    return replace(audit, divergence=(sums / counts).cpu().numpy()) if counts else audit


def are_comparable(adapters: Sequence[Adapter]) -> bool:
    """Whether they can be asked about the same observations: none is recurrent, and spaces are equal."""
    first, *others = adapters
    spaces = (first.observation_space, first.action_space)
    return not first.is_stateful() and all((a.observation_space, a.action_space) == spaces for a in others)


def _some(joint: JointBatch, total: int, key: tuple[int, ...]) -> Tensor:
    """(S,) bool: the local part of a random choice among all learners' joint steps."""
    agents = sum(columns[ACTIVE].shape[1] for columns in joint.policies.values())
    device = joint.row.device
    draw = torch.randperm(total, generator=generator(device, *key), device=device)
    chosen = torch.zeros(total, dtype=torch.bool, device=device)
    chosen[draw[: max(1, MAX_OBSERVATIONS // agents)]] = True
    return chosen[joint.row]


def _visited(joint: JointBatch, steps: Tensor, dtype: torch.dtype) -> tuple[dict[str, Any], int]:
    """What acting agents observed in these steps, as a forward takes it; and how many observations."""

    def part(columns: Mapping[str, Any]) -> Any:
        acting = columns[ACTIVE] & steps[:, None]
        inputs = {key: columns[key] for key in (Columns.OBS, ACTION_MASK) if key in columns}
        return tree.map_structure(lambda x: x[acting].to(dtype if x.is_floating_point() else x.dtype), inputs)

    batch: Any = tree.map_structure(lambda *x: torch.cat(x), *map(part, joint.policies.values()))
    return batch, len(tree.flatten(batch)[0])
