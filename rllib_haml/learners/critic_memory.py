"""What a recurrent critic knows of the episodes that go on."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllib_haml.haml import JointRows
from rllib_haml.learners.batch import JointBatch
from rllib_haml.modules.recurrent import State

logger = logging.getLogger("rllib_haml")


class CriticMemory:
    """The recurrent state after each fragment of the last batch, for the fragments that continue them.

    All learners hold all of them, since a continuation may be dealt to another learner.

    Args:
        initial: The state at an episode's start, (H,) each part.
    """

    def __init__(self, initial: State):
        self._initial = initial
        self._known: dict[tuple[int, int], Tensor] = {}

    def recall(self, joint: JointBatch) -> State:
        """The state before each fragment of this learner, (F, H) each part.

        A fragment in mid-episode that continues none of the last batch (its predecessor was dropped as
        stale) begins as an episode does; the log says so.
        """
        device = joint.states.device
        initial = torch.cat(list(self._initial.values())).to(device)
        keys = [(e, t) for e, t in zip(joint.episode.tolist(), joint.env_t.tolist(), strict=True)]
        lost = sum(t > 0 and (e, t) not in self._known for e, t in keys)
        if lost:
            logger.warning(
                "The critic reads %d fragments in mid-episode without having read their beginning.", lost
            )
        rows = [self._known[key].to(device) if key in self._known else initial for key in keys]
        states = torch.stack(rows) if rows else initial.new_zeros(0, len(initial))
        return dict(zip(self._initial, states.tensor_split(len(self._initial), dim=-1), strict=True))

    def keep(self, joint: JointBatch, after: State, rows: JointRows) -> None:
        """Takes in the state `after` each of this learner's fragments, (F, H) each part; a collective."""
        states = torch.cat(list(after.values()), dim=-1)
        begins = joint.env_t.new_zeros(rows.total)
        first = joint.row[joint.lengths.cumsum(0) - joint.lengths]
        begins[first] = 1
        number = rows.all_reduce(begins).cumsum(0) - 1
        count = int(number[-1]) + 1
        keys = joint.env_t.new_zeros(count, 2)
        keys[number[first]] = torch.stack([joint.episode, joint.env_t + joint.lengths], dim=-1)
        everyones = states.new_zeros(count, states.shape[1])
        everyones[number[first]] = states
        keys, everyones = rows.all_reduce(keys), rows.all_reduce(everyones)
        self._known = {(e, t): state for (e, t), state in zip(keys.tolist(), everyones, strict=True)}

    def get_state(self) -> dict[str, np.ndarray]:
        keys = np.array(list(self._known), np.int64).reshape(-1, 2)
        return {"keys": keys, "states": np.array([s.cpu().numpy() for s in self._known.values()])}

    def set_state(self, state: dict[str, Any]) -> None:
        states = torch.from_numpy(np.array(state["states"]))
        self._known = {(int(e), int(t)): s for (e, t), s in zip(state["keys"], states, strict=True)}
