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
from rllib_haml.learners.batch import ACTIVE
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
        optimizer: torch.optim.Optimizer,
    ):
        self._module, self._parameters, self.optimizer = module, list(parameters), optimizer
        kind = module.get_train_action_dist_cls()
        self.family: Family = kind.family if issubclass(kind, FamilyDistribution) else RLlibFamily(kind)
        self._inputs = {k: columns[k] for k in (Columns.OBS, ACTION_MASK) if k in columns}
        self._actions = columns[Columns.ACTIONS]
        self.active = columns[ACTIVE].T
        self.behaviour_logp = columns[Columns.ACTION_LOGP].T

    def parameters(self) -> list[Tensor]:
        return self._parameters

    def evaluate(self, rows: Rows) -> Evaluation:
        """Flattens rows and agents into one batch, so that K agents cost one forward pass."""

        def flat(x: Tensor) -> Tensor:
            return x[rows].flatten(0, 1)

        count, agents = self.active[:, rows].shape[1], len(self.active)
        out = self._module.forward_train(tree.map_structure(flat, self._inputs))
        parameters = out[Columns.ACTION_DIST_INPUTS]
        logp = self.family.log_prob(parameters, tree.map_structure(flat, self._actions))
        entropy = self.family.entropy(parameters)

        def by_agent(x: Tensor) -> Tensor:
            return x.view(count, agents, *x.shape[1:]).transpose(0, 1)

        return Evaluation(by_agent(logp), by_agent(entropy), by_agent(parameters))
