"""The check that no NaN or infinity enters the training data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tree

from rllib_haml._typing import AgentID
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.vector_env import TeamStep


def check_finite(
    step: TeamStep,
    agents: Sequence[AgentID],
    episode_steps: Sequence[int] | np.ndarray | None = None,
    environment: str | None = None,
) -> None:
    """Raises if anything in `step` is NaN or infinite.

    One pass over each array; the culprit is looked for only once there is one.

    Args:
        step: What a `VectorTeamEnv` returned from `reset` or `step`.
        agents: `VectorTeamEnv.agents`, the order of the reward's columns.
        episode_steps: (E,) steps that each sub-environment's episode has taken, for the message.
        environment: The environment's name, for the message.

    Raises:
        EnvironmentFault: It names agent, sub-environment, step and entry.
    """
    if not all_finite(step.reward):
        row, column = (int(i) for i in np.argwhere(~np.isfinite(step.reward))[0])
        cause = f"the reward is {step.reward[row, column]}"
        raise _fault(cause, row, episode_steps, environment, agents[column])
    for agent in agents:
        obs = step.obs[agent]
        if isinstance(obs, np.ndarray):
            if not all_finite(obs):
                raise _entry_fault("observation", obs, (), episode_steps, environment, agent)
            continue
        for path, leaf in tree.flatten_with_path(obs):
            if not all_finite(leaf):
                raise _entry_fault("observation", leaf, path, episode_steps, environment, agent)
    if step.state is not None and not all_finite(step.state):
        raise _entry_fault("state", step.state, (), episode_steps, environment, None)


def all_finite(array: np.ndarray) -> bool:
    """Integers always are. A sum of squares is finite only if all numbers are, and is quick to get."""
    if array.dtype.kind != "f":
        return True
    flat = array.ravel()
    return math.isfinite(np.dot(flat, flat)) or bool(np.isfinite(array).all())


def _entry_fault(
    what: str,
    array: np.ndarray,
    path: tuple[Any, ...],
    episode_steps: Sequence[int] | np.ndarray | None,
    environment: str | None,
    agent: AgentID | None,
) -> EnvironmentFault:
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    where = "".join(f"[{key!r}]" for key in (*path, *index[1:]))
    cause = f"{what}{where} is {array[index]}"
    return _fault(cause, index[0], episode_steps, environment, agent)


def _fault(
    cause: str,
    row: int,
    episode_steps: Sequence[int] | np.ndarray | None,
    environment: str | None,
    agent: AgentID | None,
) -> EnvironmentFault:
    step = None if episode_steps is None else int(episode_steps[row])
    return EnvironmentFault(cause, environment=environment, sub_env=row, step=step, agent=agent)
