"""An RLModule, and the rows of the agents that follow it, as the sweep's `Policy`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import tree
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_haml.haml.families import Family
from rllib_haml.haml.sweep import Evaluation, Rows
from rllib_haml.learners.batch import ACTIVE, JointBatch
from rllib_haml.learners.sequences import Sequences
from rllib_haml.modules.actor import ACTION_MASK
from rllib_haml.modules.distributions import FamilyDistribution, RLlibFamily


class ModulePolicy:
    """K agents' policy, evaluated by RLlib's `forward_train`.

    Args:
        module: Any RLModule whose `forward_train` returns `action_dist_inputs`.
        columns: Of `JointBatchConnector`, (S, K, ...).
        parameters: What the optimizer trains.
        optimizer: The module's own.
    """

    def __init__(
        self,
        module: Any,
        columns: dict[str, Any],
        parameters: Sequence[Tensor],
        optimizer: Any,
    ):
        self.module, self._parameters, self.optimizer = module, list(parameters), optimizer
        columns = as_read_by(module, columns)
        kind = module.get_train_action_dist_cls()
        self.family: Family = kind.family if issubclass(kind, FamilyDistribution) else RLlibFamily(kind)
        self.inputs = inputs_of(columns)
        self.actions = columns[Columns.ACTIONS]
        self.active = columns[ACTIVE].T
        self.behaviour_logp = columns[Columns.ACTION_LOGP].T

    def parameters(self) -> list[Tensor]:
        return self._parameters

    @property
    def columns(self) -> dict[str, Any]:
        """What it reads, as the connector lays it out."""
        told = {ACTIVE: self.active.T, Columns.ACTION_LOGP: self.behaviour_logp.T}
        return {**self.inputs, Columns.ACTIONS: self.actions, **told}

    def evaluate(self, rows: Rows) -> Evaluation:
        """Flattens rows and agents into one batch, so that K agents cost one forward pass."""

        def flat(x: Tensor) -> Tensor:
            return x[rows].flatten(0, 1)

        count, agents = self.active[:, rows].shape[1], len(self.active)
        out = self.module.forward_train(tree.map_structure(flat, self.inputs))
        parameters = out[Columns.ACTION_DIST_INPUTS]
        logp = self.family.log_prob(parameters, tree.map_structure(flat, self.actions))
        entropy = self.family.entropy(parameters)

        def by_agent(x: Tensor) -> Tensor:
            return x.view(count, agents, *x.shape[1:]).transpose(0, 1)

        return Evaluation(by_agent(logp), by_agent(entropy), by_agent(parameters))


class RecurrentPolicy(ModulePolicy):
    """The same of a recurrent module: it reads every fragment from the state that the sampler had there.

    Without gradients the states are those of the present weights throughout. With gradients, sequences of
    `max_seq_len` joint steps begin with the states that the weights had there at the first evaluation,
    before the update, and backpropagation ends there. Both agree where the weights are still these.

    Args:
        joint: Where the fragments begin.
        max_seq_len: Joint steps of a sequence.
    """

    def __init__(
        self, *args: Any, joint: JointBatch, max_seq_len: int, columns: dict[str, Any], **kwargs: Any
    ):
        super().__init__(*args, columns=columns, **kwargs)
        self.joint, self.max_seq_len = joint, max_seq_len
        self._unit = joint.units(max_seq_len)
        self._sequences = Sequences.of(joint.fragment[~joint.last], self._unit, self.active.T)
        self._first = as_read_by(self.module, columns[Columns.STATE_IN])
        self._before: Any = None

    @property
    def columns(self) -> dict[str, Any]:
        return super().columns | {Columns.STATE_IN: self._first}

    def _states(self) -> Any:
        """The state before each sequence, (B, ...)."""
        if self._before is not None and torch.is_grad_enabled():
            return self._before
        first = tree.map_structure(lambda x: x.flatten(0, 1), self._first)
        states = self._sequences.states(
            lambda part, before: self._read(part, before)[Columns.STATE_OUT], first
        )
        if self._before is None:
            self._before = states
        return states

    def _read(self, part: Sequences, before: Any) -> dict[str, Any]:
        """The module's outputs for B sequences, (B, L, ...), from the states before them."""
        return self.module.forward_train(part.gather(self.inputs) | {Columns.STATE_IN: before})

    def evaluate(self, rows: Rows) -> Evaluation:
        """All agents' sequences in one batch; in rows without action zeros."""
        chosen = self._sequences.within(self._unit[rows])
        part = self._sequences[chosen]
        out = self._read(part, tree.map_structure(lambda x: x[chosen], self._states()))
        parameters = out[Columns.ACTION_DIST_INPUTS][part.valid]
        actions = tree.map_structure(lambda x: x[part.entries()], self.actions)

        def by_agent(x: Tensor) -> Tensor:
            return part.scatter(x, len(self._unit), len(self.active))[:, rows]

        logp, entropy = self.family.log_prob(parameters, actions), self.family.entropy(parameters)
        return Evaluation(by_agent(logp), by_agent(entropy), by_agent(parameters))


def inputs_of(columns: dict[str, Any]) -> dict[str, Any]:
    """What a forward takes of a policy's columns (S, K, ...), a recurrent one's state aside."""
    return {key: columns[key] for key in (Columns.OBS, ACTION_MASK) if key in columns}


def as_read_by(module: Any, columns: Any) -> Any:
    """A tree of tensors, those of floats with the precision of the module's weights."""
    dtype = next(module.parameters()).dtype
    return tree.map_structure(lambda x: x.to(dtype) if x.is_floating_point() else x, columns)
