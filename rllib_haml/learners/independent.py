"""The update of agents that know nothing of each other but the team's reward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ray.rllib.core import ALL_MODULES
from ray.rllib.utils.annotations import override
from torch import Tensor

from rllib_haml.haml import SweepResult
from rllib_haml.learners.advantages import TeamAdvantage
from rllib_haml.learners.batch import ACTIVE, JointBatch
from rllib_haml.learners.connector import state_size
from rllib_haml.learners.on_policy import OnPolicyTeamLearner
from rllib_haml.modules.critic import own_critic


class IndependentLearner(OnPolicyTeamLearner):
    """Each policy moves against the advantage that its own critic sees in its own observations."""

    @override(OnPolicyTeamLearner)
    def build(self) -> None:
        super().build()
        team = self.config.team
        # The joint observation holds each agent's, followed by whether it is there.
        ends = np.cumsum([state_size(team.reduced_to(agent)) for agent in team.agents]).tolist()
        self._seen = {
            team.module_of[agent]: slice(start, end)
            for agent, start, end in zip(team.agents, [0, *ends], ends, strict=False)
        }

    @override(OnPolicyTeamLearner)
    def _update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        joint = JointBatch.of(batch, self._critic_ids()[0])
        rows, losses = self._rows(joint), {}
        self._bounds: list[Tensor] = []
        for name, player in self._players(joint).items():
            acted = joint.policies[name][ACTIVE].squeeze(1)
            own = replace(joint, states=joint.states[:, self._seen[name]], any_active=acted)
            values, advantage = self._critics[own_critic(name)].estimate(own, rows)
            losses |= self._sweep({name: player}, advantage)
            self._fit_later(own_critic(name), values, advantage)
        bound = torch.stack(self._bounds).sum() if self._bounds else torch.zeros((), device=self._device)
        self.metrics.log_value((ALL_MODULES, "improvement_lower_bound"), bound, window=1)
        return {}, losses, {}

    @override(OnPolicyTeamLearner)
    def _report_team(self, result: SweepResult, advantage: TeamAdvantage, bound: Tensor) -> None:
        """Of one agent's sweep: no ratio compounds, and the team's bound is the sum over all sweeps."""
        self._bounds.append(bound)
