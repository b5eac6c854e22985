"""One joint step's rewards in the order of the agents, and what is wrong where some are no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.team_env import AgentID, TimeStep


def reward_row(agents: Sequence[AgentID], now: TimeStep, acted: Sequence[AgentID]) -> list[Any]:
    """(N,) numbers, one for each of `agents`; 0 for one that did not act and got none.

    Raises:
        EnvironmentFault: One that `acted` and observed got no reward, or a reward is no number. (`TeamEnv`s
            know of those who are not observed until when they may be rewarded.)
    """
    rewards = now.rewards
    try:
        row = [rewards[agent] for agent in agents]
        # Adding up is the cheapest test: numpy itself would take "1.5" for a number.
        if isinstance(sum(row), (int, float, np.generic)):
            return row
    except (KeyError, TypeError, ValueError):
        pass
    return [_reward(agent, now, acted) for agent in agents]


def _reward(agent: AgentID, now: TimeStep, acted: Sequence[AgentID]) -> float:
    if agent in acted and agent in now.obs and agent not in now.rewards:
        raise EnvironmentFault("it acted but got no reward", agent=agent)
    reward = now.rewards.get(agent, 0.0)
    try:
        return float(0 + reward)  # which text does not survive, though `float` reads it
    except (TypeError, ValueError):
        raise EnvironmentFault(f"its reward is not a number: {reward!r}", agent=agent) from None
