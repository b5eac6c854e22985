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
from rllib_haml.learners.module_policy import as_read_by, inputs_of
from rllib_haml.learners.sequences import Sequences, common_seq_len
from rllib_haml.learners.stacked_policy import side_by_side
from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.adapter_drift import AdapterAudit, audit_adapters, divergences

# About as many, over all agents and learners; of recurrent policies no fewer sequences than this.
MAX_OBSERVATIONS, MIN_SEQUENCES = 256, 8
# What a forward takes, and which of its rows an agent that acted observed.
Visited = tuple[dict[str, Any], Tensor]


def report_adapters(
    adapters: Mapping[str, Adapter], joint: JointBatch, total: int, key: tuple[int, ...]
) -> AdapterAudit:
    """The audit after an update, alike on every learner.

    Policies are compared on what acting agents observed in a few random steps of the batch, or, if they are
    recurrent, in the opening sequences of a few random fragments, each from the state that the agent had
    there; unless their spaces are unequal.

    Args:
        total: Joint steps of all learners.
    """
    audit, each = audit_adapters(adapters), list(adapters.values())
    if not are_comparable(each):
        return audit
    columns = side_by_side(list(joint.policies.values()))
    device, agents = joint.row.device, columns[ACTIVE].shape[1]
    draw = torch.rand(total, agents, generator=generator(device, *key), device=device)[joint.row]
    length = common_seq_len(adapters)
    if length is None:
        batch, visited = _some_rows(columns, draw, total)
    else:
        batch, visited = _some_sequences(columns, joint, draw, length)
    count = int(visited.sum())
    found = np.zeros((len(each), len(each)))
    if count:
        found = divergences(each, as_read_by(each[0], batch), visited)
    sums = all_reduce(torch.as_tensor(count * found, device=device))
    counts = int(all_reduce(torch.tensor(count, device=device)))
    return replace(audit, divergence=(sums / counts).cpu().numpy()) if counts else audit


def are_comparable(adapters: Sequence[Adapter]) -> bool:
    """Whether they can be asked about the same observations: their spaces are equal."""
    first, *others = adapters
    spaces = (first.observation_space, first.action_space)
    return all((a.observation_space, a.action_space) == spaces for a in others)


def _some_rows(columns: dict[str, Any], draw: Tensor, total: int) -> Visited:
    """Random steps of random agents, (B, ...)."""
    share = MAX_OBSERVATIONS / (total * draw.shape[1])
    chosen = columns[ACTIVE] & (draw < share)
    batch: Any = tree.map_structure(lambda x: x[chosen], inputs_of(columns))
    return batch, chosen[chosen]


def _some_sequences(columns: dict[str, Any], joint: JointBatch, draw: Tensor, length: int) -> Visited:
    """Of random agents in random fragments the sequence in which they first act, (B, T, ...)."""
    sequences = Sequences.of(joint.fragment[~joint.last], joint.units(length), columns[ACTIVE])
    streams = draw.shape[1] * int(all_reduce(torch.tensor(len(joint.lengths), device=draw.device)))
    share = max(MAX_OBSERVATIONS / length, MIN_SEQUENCES) / max(1, streams)
    drawn = draw[sequences.rows[:, 0], sequences.agent] < share
    chosen = sequences[(sequences.place == 0) & drawn]
    states: Any = tree.map_structure(lambda x: x.flatten(0, 1)[chosen.stream], columns[Columns.STATE_IN])
    return chosen.gather(inputs_of(columns)) | {Columns.STATE_IN: states}, chosen.valid
