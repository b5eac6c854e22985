"""A critic on a learner: what it says of a batch, what it remembers, and how it learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rllib_haml.haml import JointRows, NotFinite
from rllib_haml.haml.finite import all_or_nothing, check_finite, check_weights
from rllib_haml.learners.advantages import TeamAdvantage
from rllib_haml.learners.batch import JointBatch
from rllib_haml.learners.critic_memory import CriticMemory
from rllib_haml.learners.state_values import RecurrentStateValues, StateValues
from rllib_haml.learners.value_fit import fit_critic


class TeamCritic:
    """Estimates the team's advantage, and fits V afterwards.

    Args:
        module: A `Critic`.
        optimizer: Of what trains of it; may be exchanged.
        config: The algorithm's config with the critic's overrides.
        max_seq_len: Where sequences are cut if it remembers.
    """

    def __init__(self, module: Any, optimizer: torch.optim.Optimizer, config: Any, max_seq_len: int | None):
        self._module, self.optimizer, self._config = module, optimizer, config
        self._max_seq_len = max_seq_len
        initial = module.get_initial_state()
        self.memory = CriticMemory(initial) if initial else None

    @torch.no_grad()
    def estimate(self, joint: JointBatch, rows: JointRows) -> tuple[StateValues, TeamAdvantage]:
        """V, and the team's advantage."""
        values = self._values(joint, rows)
        advantage = TeamAdvantage(
            joint,
            rows,
            self._module.denormalise(values.before),
            self._config.gamma,
            self._config.lambda_,
            self._config.preceding_agent_correction,
        )
        return values, advantage

    def _values(self, joint: JointBatch, rows: JointRows) -> StateValues:
        if self.memory is None:
            return StateValues(self._module, joint)
        assert self._max_seq_len is not None
        values = RecurrentStateValues(self._module, joint, self.memory.recall(joint), self._max_seq_len)
        self.memory.keep(joint, values.after_last_step(), rows)
        return values

    def fit(
        self, values: StateValues, advantage: TeamAdvantage, key: tuple[int | str, ...]
    ) -> tuple[dict[str, Tensor], NotFinite | None]:
        """See `fit_critic`; leaves the critic as it was if that is not finite, and returns why."""
        parameters, buffers = list(self._module.parameters()), list(self._module.buffers())
        rows, optimizer = advantage.rows, self.optimizer
        try:
            with all_or_nothing(parameters, optimizer, buffers):
                check_finite("advantage", advantage.plain, rows)
                report = fit_critic(values, optimizer, advantage.plain, rows, self._config, key)
                check_weights([*parameters, *buffers])
            return report, None
        except NotFinite as fault:
            return {}, fault
