"""The batch that the update reads: aligned joint steps under every policy and the critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from rllib_haml.modules.critic import CRITIC

ACTIVE, STATE, LAST, TERMINATED = "active", "state", "last", "terminated"
ROW, ANY_ACTIVE, EPISODE, ENV_T = "row", "any_active", "episode", "env_t"


@dataclass(frozen=True)
class JointBatch:
    """S aligned joint steps of this learner, and the states that follow its fragments.

    Attributes:
        policies: Per policy its columns, (S, K, ...).
        states: (S + F, D), every fragment's states in order.
        last: (S + F,) bool: the F states in which no step was recorded.
        reward, terminated, any_active, row: (S,).
        episode, env_t: (F,) of each fragment: a number for its episode, and its first step's there.
    """

    policies: dict[str, dict[str, Any]]
    states: Tensor
    last: Tensor
    reward: Tensor
    terminated: Tensor
    any_active: Tensor
    row: Tensor
    episode: Tensor
    env_t: Tensor

    @classmethod
    def of(cls, columns: dict[str, dict[str, Any]], critic_id: str = CRITIC) -> JointBatch:
        """Puts the connector's columns together again."""
        critic = columns[critic_id]
        steps = ~critic[LAST]
        return cls(
            {name: c for name, c in sorted(columns.items()) if name != critic_id},
            critic[STATE],
            critic[LAST],
            critic[Columns.REWARDS][steps],
            critic[TERMINATED][steps],
            critic[ANY_ACTIVE][steps],
            critic[ROW][steps],
            critic[EPISODE],
            critic[ENV_T],
        )

    def columns_by_fragment(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(S,) rows as time-major columns (T, F), one per fragment, zeros below its end.

        Returns:
            The columns, and (T, F) bool: which entries are rows.
        """
        index, filled = self._layout()
        padded = rows.new_zeros(filled.shape)
        padded[filled] = rows[index]
        return padded, filled

    def rows_of(self, columns: Tensor) -> Tensor:
        """The inverse: (T, F) columns to (S,) rows."""
        index, filled = self._layout()
        rows = columns.new_zeros(len(self.reward))
        rows[index] = columns[filled]
        return rows

    def _layout(self) -> tuple[Tensor, Tensor]:
        """(S,) row of each filled entry, and (T, F) which entries are filled, both time-major."""
        lengths = self.lengths
        starts = lengths.cumsum(0) - lengths
        longest = int(lengths.max()) if len(lengths) else 0
        t = torch.arange(longest, device=self.last.device)[:, None]
        filled = t < lengths[None]
        return (starts[None] + t)[filled], filled

    @property
    def lengths(self) -> Tensor:
        """(F,) joint steps of each fragment."""
        ends = self.last.nonzero().squeeze(-1)
        return torch.diff(ends, prepend=ends.new_full((1,), -1)) - 1

    @property
    def fragment(self) -> Tensor:
        """(S + F,) the fragment of each state."""
        return self.last.cumsum(0) - self.last.long()

    def units(self, max_seq_len: int) -> Tensor:
        """(S,) the unit that each step lies in."""
        return self.unit_begins(max_seq_len)[~self.last].cumsum(0) - 1

    def unit_begins(self, max_seq_len: int) -> Tensor:
        """(S + F,) bool: a unit begins every `max_seq_len` steps, and with a fragment's last state."""
        rows = self.lengths + 1
        starts = rows.cumsum(0) - rows
        t = torch.arange(len(self.last), device=self.last.device) - starts[self.fragment]
        return (t % max_seq_len == 0) | self.last
