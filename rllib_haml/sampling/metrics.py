"""Returns, lengths and counters of the fast sampler, under RLlib's names."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.rllib.utils.metrics import (
    NUM_AGENT_STEPS_SAMPLED,
    NUM_AGENT_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    NUM_EPISODES_LIFETIME,
    NUM_MODULE_STEPS_SAMPLED,
    NUM_MODULE_STEPS_SAMPLED_LIFETIME,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.fragment import JointFragment
from rllib_haml.sampling.team import Team, TeamReward, UnequalRewards, team_reward


def rewards_of(fragment: JointFragment, rule: TeamReward, environment: str) -> np.ndarray:
    """(T,) team rewards of a fragment.

    Raises:
        EnvironmentFault: Under `shared`, if agents were rewarded differently in a step.
    """
    active = np.stack([fragment.active[a][:-1] for a in fragment.active], axis=-1)
    try:
        return team_reward(fragment.reward, active, rule)
    except UnequalRewards as error:
        raise EnvironmentFault(
            error.cause(fragment.obs),
            environment=environment,
            method="step",
            sub_env=fragment.source[1],
            step=fragment.env_t + error.row + 1,
        ) from None


@dataclass
class _Total:
    """One running episode so far; `returns` and `acted` are (N,)."""

    returns: np.ndarray
    acted: np.ndarray
    length: int = 0
    started: float = field(default_factory=time.perf_counter)


class EpisodeMetrics:
    """Running episodes of E sub-environments: ids, lengths, returns so far.

    Attributes:
        ids: (E,) id of each running episode.
        steps: (E,) steps that it has taken.
    """

    def __init__(self, team: Team, num_envs: int):
        self._team = team
        self.ids = [""] * num_envs
        self.steps = np.zeros(num_envs, dtype=int)
        self._so_far: dict[str, _Total] = {}

    def start(self, e: int, episode_id: str) -> None:
        self.ids[e] = episode_id
        self.steps[e] = 0
        agents = len(self._team.agents)
        self._so_far[episode_id] = _Total(np.zeros(agents), np.zeros(agents, int))

    def count_step(self) -> None:
        self.steps += 1

    def log(
        self,
        logger: MetricsLogger,
        fragments: Sequence[JointFragment],
        log_episode: Callable[..., None],
    ) -> None:
        """Counts steps and, for every episode that ended, logs its length and returns.

        Args:
            log_episode: RLlib's `_log_episode_metrics`.
        """
        for fragment in sorted(fragments, key=lambda f: f.env_t):
            total = self._so_far[fragment.episode_id]
            self._add(total, fragment)
            if fragment.terminated or fragment.truncated:
                self._log_episode(logger, total, log_episode)
        self._log_steps(logger, fragments)
        # Only episodes that go on are carried over: sampling by episodes leaves unfinished ones behind.
        self._so_far = {k: v for k, v in self._so_far.items() if k in self.ids}

    def _add(self, total: _Total, fragment: JointFragment) -> None:
        total.length += len(fragment)
        total.returns += fragment.reward.sum(0)
        total.acted += np.array([fragment.active[a][:-1].sum() for a in self._team.agents])

    def _log_episode(self, logger: MetricsLogger, total: _Total, log_episode: Callable[..., None]) -> None:
        names = [str(a) for a in self._team.agents]
        modules: dict[str, float] = {}
        for agent, value in zip(self._team.agents, total.returns, strict=True):
            module = self._team.module_of[agent]
            modules[module] = modules.get(module, 0.0) + float(value)
        log_episode(
            total.length,
            float(total.returns.sum()),
            time.perf_counter() - total.started,
            dict(zip(names, total.returns.tolist(), strict=True)),
            modules,
            dict(zip(names, total.acted.tolist(), strict=True)),
        )
        logger.log_value(NUM_EPISODES, 1, reduce="sum")
        logger.log_value(NUM_EPISODES_LIFETIME, 1, reduce="lifetime_sum")

    def _log_steps(self, logger: MetricsLogger, fragments: Sequence[JointFragment]) -> None:
        steps = sum(map(len, fragments))
        logger.log_value(NUM_ENV_STEPS_SAMPLED, steps, reduce="sum")
        logger.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, steps, reduce="lifetime_sum", with_throughput=True)
        for agent in self._team.agents:
            acted = int(sum(f.active[agent][:-1].sum() for f in fragments))
            module = self._team.module_of[agent]
            for sampled, lifetime, name in (
                (NUM_AGENT_STEPS_SAMPLED, NUM_AGENT_STEPS_SAMPLED_LIFETIME, str(agent)),
                (NUM_MODULE_STEPS_SAMPLED, NUM_MODULE_STEPS_SAMPLED_LIFETIME, module),
            ):
                logger.log_value((sampled, name), acted, reduce="sum")
                logger.log_value((lifetime, name), acted, reduce="lifetime_sum")

    def get_state(self) -> dict[str, Any]:
        return {"ids": list(self.ids), "steps": self.steps.copy(), "so_far": deepcopy(self._so_far)}

    def set_state(self, state: dict[str, Any]) -> None:
        self.ids, self.steps = list(state["ids"]), state["steps"].copy()
        self._so_far = deepcopy(state["so_far"])
