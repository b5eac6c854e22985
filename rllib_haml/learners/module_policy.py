"""An RLModule, and the rows of the agents that follow it, as the sweep's `Policy`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import tree
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_haml.haml.sweep import Evaluation, Rows
from rllib_haml.learners.batch import ACTIVE
from rllib_haml.modules.actor import ACTION_MASK


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
        self._distribution = module.get_train_action_dist_cls()
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
        distribution = self._distribution.from_logits(out[Columns.ACTION_DIST_INPUTS])
        logp = distribution.logp(tree.map_structure(flat, self._actions))
        return Evaluation(logp.view(count, agents).T, distribution.entropy().view(count, agents).T)
