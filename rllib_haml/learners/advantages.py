"""The team's advantage, as the sweep asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rllib_haml.haml import JointRows, gae
from rllib_haml.learners.batch import JointBatch


@dataclass(frozen=True)
class TeamAdvantage:
    """Â (S,), normalised once over all learners' rows in which anyone acted.

    Attributes:
        joint: The batch.
        rows: Which rows of the global batch these are.
        values: (S + F,) V of every state, in the reward's units.
        gamma, lambda_: Of GAE.
        preceding_agent_correction: Estimate it anew for each mover, for the policies that those before it
            have by now (A2PO, Wang et al. 2023, arXiv 2302.06205, eq. 2); else once.
    """

    joint: JointBatch
    rows: JointRows
    values: Tensor
    gamma: float
    lambda_: float
    preceding_agent_correction: bool = False

    @torch.no_grad()
    def __call__(self, log_factor: Tensor) -> Tensor:
        """(Â - mean) / (std + 1e-5), given the log of the compound ratio (S,)."""
        return self._normalise(self.estimate(log_factor)) if self.preceding_agent_correction else self._once

    @cached_property
    def plain(self) -> Tensor:
        """(S,) GAE for the policies that sampled, in units of the reward."""
        return self.estimate(None)

    @cached_property
    def _once(self) -> Tensor:
        return self._normalise(self.plain)

    def _normalise(self, advantage: Tensor) -> Tensor:
        mean, deviation = self.moments(advantage)
        return (advantage - mean) / (deviation + 1e-5)

    @torch.no_grad()
    def estimate(self, log_factor: Tensor | None) -> Tensor:
        """(S,), in units of the reward; with `log_factor`, by traces that the compound ratio cuts."""
        joint, steps = self.joint, ~self.joint.last
        columns = [joint.reward, self.values[steps], self.values.roll(-1)[steps], joint.terminated]
        if log_factor is not None:
            columns.append(log_factor.exp().clamp(max=1))
        reward, value, next_value, terminated, *trace = (
            joint.columns_by_fragment(x.to(self.values.dtype))[0] for x in columns
        )
        filled = joint.columns_by_fragment(joint.reward)[1]
        ended = torch.ones_like(filled)
        ended[:-1] = ~filled[1:]
        advantage = gae(
            reward,
            value,
            next_value,
            terminated.bool(),
            ended,
            gamma=self.gamma,
            lambda_=self.lambda_,
            **({"trace": trace[0]} if trace else {}),
        )
        return joint.rows_of(advantage)

    def moments(self, advantage: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the rows that count, on all learners."""
        counted, rows = self.joint.any_active, self.rows
        mean = rows.all_reduce(rows.mean(advantage, counted))
        variance = rows.all_reduce(rows.mean((advantage - mean).square(), counted))
        return mean, variance.sqrt()
