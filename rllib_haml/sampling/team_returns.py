"""Return and outcome of each of the team's episodes, put together from fragments."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rllib_haml.sampling.fragment import JointFragment
from rllib_haml.sampling.metrics import rewards_of
from rllib_haml.sampling.outcomes import OUTCOME_MEAN, mean_outcomes
from rllib_haml.sampling.team import TeamReward


class TeamReturns:
    """Follows running episodes over train batches and keeps the returns of the last ones that ended,
    and what their environment tells of them beside.

    An episode of which a fragment was lost has no return and is left out.

    Args:
        window: How many ended episodes to keep.
    """

    def __init__(self, window: int, rule: TeamReward, environment: str):
        self._rule: TeamReward = rule
        self._environment = environment
        self._ended: deque[float] = deque(maxlen=window)
        self._outcomes: deque[dict[str, float]] = deque(maxlen=window)
        self._running: dict[str, tuple[int, float]] = {}

    def add(self, fragments: Sequence[JointFragment]) -> None:
        """Takes in one train batch."""
        running: dict[str, tuple[int, float]] = {}
        for fragment in sorted(fragments, key=lambda f: (f.episode_id, f.env_t)):
            before = running.get(fragment.episode_id) or self._running.get(fragment.episode_id, (0, 0.0))
            steps, so_far = before
            if steps != fragment.env_t:
                continue
            so_far += float(rewards_of(fragment, self._rule, self._environment).sum())
            if fragment.terminated or fragment.truncated:
                self._ended.append(so_far)
                self._outcomes.append(fragment.outcome)
                running.pop(fragment.episode_id, None)
            else:
                running[fragment.episode_id] = (steps + len(fragment), so_far)
        self._running = running

    def summary(self) -> dict[str, Any]:
        """Mean, minimum and maximum return over the window, and the mean of each outcome over the episodes
        that have it; empty before the first episode has ended."""
        return summary(self._ended, self._outcomes)

    def get_state(self) -> dict[str, Any]:
        return {
            "ended": list(self._ended),
            "outcomes": list(self._outcomes),
            "running": dict(self._running),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._ended.clear()
        self._ended.extend(state["ended"])
        self._outcomes.clear()
        self._outcomes.extend(state.get("outcomes", ()))  # older checkpoints have none
        self._running = dict(state["running"])


def summary(returns: Collection[float], outcomes: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """Mean, minimum and maximum of the episodes' `returns`, and the mean of each outcome over the episodes
    that have it; empty without episodes."""
    if not returns:
        return {}
    told = mean_outcomes(outcomes)
    return {
        "team_return_mean": float(np.mean(list(returns))),
        "team_return_min": float(min(returns)),
        "team_return_max": float(max(returns)),
        **({OUTCOME_MEAN: told} if told else {}),
    }
