"""V of a batch's states under the critic's present weights, with or without memory."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import tree
from torch import Tensor

from rllib_haml.haml.sweep import Rows
from rllib_haml.learners.batch import JointBatch
from rllib_haml.learners.sequences import Sequences


class StateValues:
    """A critic without memory on the states of `joint`."""

    def __init__(self, critic: Any, joint: JointBatch):
        self.critic, self.joint = critic, joint
        self._states = joint.states.to(next(critic.parameters()).dtype)

    @cached_property
    def before(self) -> Tensor:
        """(S + F,) values before the update, on the normaliser's scale."""
        with torch.no_grad():
            return self._everywhere()

    def _everywhere(self) -> Tensor:
        return self.critic.normalised_values(self._states)

    @cached_property
    def _step_states(self) -> Tensor:
        return self._states[~self.joint.last]

    def of_steps(self, rows: Rows) -> Tensor:
        """(R,) values of some of the S joint steps, on the normaliser's scale; differentiable."""
        return self.critic.normalised_values(self._step_states[rows])


class RecurrentStateValues(StateValues):
    """A critic with memory: it reads every fragment from `first`, and gradients go back `max_seq_len` steps.

    Args:
        first: Its recurrent state before each fragment, (F, H) each part.
        max_seq_len: Where sequences are cut; each begins with the state that the weights before the
            update have there.
    """

    def __init__(self, critic: Any, joint: JointBatch, first: Any, max_seq_len: int):
        super().__init__(critic, joint)
        self._unit = joint.unit_begins(max_seq_len).cumsum(0) - 1
        everywhere = torch.ones_like(joint.last)[:, None]
        self._sequences = Sequences.of(joint.fragment, self._unit, everywhere)
        first = tree.map_structure(lambda x: x.to(self._states.dtype), first)
        self._starts = self._sequences.states(lambda part, before: self._unroll(part, before)[1], first)

    def after_last_step(self) -> Any:
        """The recurrent state after each fragment's last step, (F, H) each part."""
        ends = self.joint.last[self._sequences.rows[:, 0]]
        return tree.map_structure(lambda x: x[ends], self._starts)

    def _everywhere(self) -> Tensor:
        return self._of(torch.arange(len(self._states), device=self._states.device))

    def of_steps(self, rows: Rows) -> Tensor:
        return self._of((~self.joint.last).nonzero().squeeze(-1)[rows])

    def _of(self, index: Tensor) -> Tensor:
        chosen = self._sequences.within(self._unit[index])
        part = self._sequences[chosen]
        values, _ = self._unroll(part, tree.map_structure(lambda x: x[chosen], self._starts))
        return part.scatter(values[part.valid], len(self._states), 1)[0, index]

    def _unroll(self, part: Sequences, before: Any) -> tuple[Tensor, Any]:
        return self.critic.unroll(part.gather(self._states[:, None]), before)
