"""The update of a team that first shares one network, and then adapts it agent by agent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import tree
from ray.rllib.core import ALL_MODULES
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import StateDict
from torch import Tensor

from rllib_haml.haml import Player
from rllib_haml.learners.adapter_report import report_adapters
from rllib_haml.learners.advantages import TeamAdvantage
from rllib_haml.learners.batch import JointBatch
from rllib_haml.learners.on_policy import OnPolicyTeamLearner
from rllib_haml.modules.adapter import BACKBONE

ADAPTERS_TRAIN = "adapters_train"


class LoRASALearner(OnPolicyTeamLearner):
    """While the team shares, one player moves the backbone on all agents' rows; then each adapter is one.

    Critic, value normaliser and counters know nothing of the phases, so they carry over.
    """

    @override(OnPolicyTeamLearner)
    def build(self) -> None:
        super().build()
        self._adapters_train = False

    def begin_adapters(self) -> None:
        """From now on the backbone rests and the adapters move."""
        self._adapters_train = True

    @override(OnPolicyTeamLearner)
    def _players(self, joint: JointBatch) -> dict[str, Player]:
        if self._adapters_train:
            return super()._players(joint)
        columns = list(joint.policies.values())
        together = tree.map_structure(lambda *agents: torch.cat(agents, dim=1), *columns)
        return super()._players(replace(joint, policies={BACKBONE: together}))

    @override(OnPolicyTeamLearner)
    def _sweep(self, players: dict[str, Player], advantage: TeamAdvantage) -> dict[str, Tensor]:
        losses = super()._sweep(players, advantage)
        if self._adapters_train:
            self._log_audit(advantage)
        return losses

    def _log_audit(self, advantage: TeamAdvantage) -> None:
        adapters = {name: self.module[name].unwrapped() for name in advantage.joint.policies}
        key = self._sweep_seed, self._weights_seq_no
        audit = report_adapters(adapters, advantage.joint, advantage.rows.total, key)
        self.metrics.log_dict(audit.metrics(), key=ALL_MODULES, window=1)
        for name, figures in audit.by_agent().items():
            self.metrics.log_dict(figures, key=name, window=1)

    @override(OnPolicyTeamLearner)
    def _is_trained(self, module_id: str) -> bool:
        return module_id == BACKBONE or super()._is_trained(module_id)

    @override(OnPolicyTeamLearner)
    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        return {**super().get_state(*args, **kwargs), ADAPTERS_TRAIN: self._adapters_train}

    @override(OnPolicyTeamLearner)
    def set_state(self, state: StateDict) -> None:
        super().set_state(state)
        self._adapters_train = state.get(ADAPTERS_TRAIN, self._adapters_train)
