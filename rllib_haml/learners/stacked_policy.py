"""All agents of several adapters as one policy of the sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import tree
from ray.rllib.core.columns import Columns

from rllib_haml.haml.sweep import Evaluation, Rows
from rllib_haml.learners.batch import ACTIVE
from rllib_haml.learners.module_policy import ModulePolicy, RecurrentPolicy
from rllib_haml.learners.sequences import Sequences, rank_within
from rllib_haml.modules.actor import ACTION_MASK
from rllib_haml.modules.adapter_stack import AdapterStack


class _OfAdapters(ModulePolicy):
    """All agents of several adapters' policies as one, evaluated as one network; it moves nothing itself.

    Args:
        policies: Of alike adapters.
        keys: What the kind of policy takes besides.
    """

    def __init__(self, policies: Sequence[ModulePolicy], **keys: Any):
        super().__init__(
            policies[0].module,
            columns=side_by_side([policy.columns for policy in policies]),
            parameters=[],
            optimizer=None,
            **keys,
        )
        self._stack = AdapterStack([policy.module for policy in policies for _ in policy.active])


class StackedPolicy(_OfAdapters):
    """That of adapters without memory."""

    def __init__(self, policies: Sequence[ModulePolicy]):
        super().__init__(policies)
        # Agent by agent in memory: the network reads them so.
        ordered: Any = tree.map_structure(
            lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), (self.inputs, self.actions)
        )
        self.inputs, self.actions = ordered

    def evaluate(self, rows: Rows) -> Evaluation:
        chosen: Any = tree.map_structure(lambda x: x.transpose(0, 1)[:, rows], (self.inputs, self.actions))
        inputs, actions = chosen
        parameters = self._stack.forward(inputs)[Columns.ACTION_DIST_INPUTS]
        log_prob = self.family.log_prob(parameters, actions)
        return Evaluation(log_prob, self.family.entropy(parameters), parameters)


class StackedRecurrentPolicy(_OfAdapters, RecurrentPolicy):
    """That of recurrent adapters."""

    def _read(self, part: Sequences, before: Any) -> dict[str, Any]:
        """Agents with fewer sequences than others read the first one, again and for nothing."""
        batch = part.gather(self.inputs) | {Columns.STATE_IN: before}
        place = rank_within(part.agent)
        most = int(place.max()) + 1 if len(part) else 0
        index = place.new_zeros(len(self.active), most)
        index[part.agent, place] = torch.arange(len(part), device=index.device)
        taken = part.agent * most + place
        out = self._stack.forward(tree.map_structure(lambda x: x[index], batch))
        found: Any = tree.map_structure(lambda x: x.flatten(0, 1).index_select(0, taken), out)
        return found


def stacked(policies: Sequence[ModulePolicy]) -> ModulePolicy:
    """One policy of all the agents of these, whose adapters are alike."""
    first = policies[0]
    if len(policies) == 1:
        return first
    if isinstance(first, RecurrentPolicy):
        return StackedRecurrentPolicy(policies, joint=first.joint, max_seq_len=first.max_seq_len)
    return StackedPolicy(policies)


def side_by_side(columns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The columns (S, K, ...) of several policies as those of one policy of all their agents.

    Agents without a mask get one that allows everything, if others have one.
    """
    masks = [part[ACTION_MASK] for part in columns if ACTION_MASK in part]
    if masks:
        free = torch.ones_like(masks[0][:, :1])
        columns = [{ACTION_MASK: free.expand(-1, part[ACTIVE].shape[1], -1)} | part for part in columns]
    together: Any = tree.map_structure(lambda *parts: torch.cat(parts, dim=1), *columns)
    return together
