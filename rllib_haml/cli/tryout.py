"""Plays an experiment's environment as training will: in as many copies, with its sampler and policies."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ray.rllib.env.env_context import EnvContext

from rllib_haml.algorithms.team_config import TeamConfig
from rllib_haml.cli.apart import Tell
from rllib_haml.cli.shared_state import copies_share_state
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.finite_fragments import check_fragments
from rllib_haml.sampling.from_episodes import as_fragments
from rllib_haml.sampling.team_returns import TeamReturns

JOINT_STEPS = 20  # at least, of each copy
PLAY_S = 0.5  # at least, for a rate worth telling, where steps are quick
LIMIT_S = 20.0  # about; a joint step that has begun is waited for


@dataclass(frozen=True)
class Played:
    """What came of playing.

    Attributes:
        fault: What is wrong, or None.
        start_s: Seconds until every copy had been made, reset and stepped once.
        first_s: Of these, for the reset and the first step of all copies.
        steps_per_s: Env steps of all copies together after that, with the policies' forward passes.
        share_state: One copy shows something else when another one is stepped beside it.
    """

    fault: str | None = None
    start_s: float = 0.0
    first_s: float = 0.0
    steps_per_s: float = 0.0
    share_state: bool = False


def play(tell: Tell, pickled: bytes, alone: bool) -> Played:
    """Makes an experiment's env runner and samples with it; for a process of its own.

    Args:
        tell: Is told of every copy that was made and every batch of steps that was played.
        pickled: The experiment's config, validated.
        alone: With one copy of the environment and none for evaluation, but with as many steps.
    """
    config: TeamConfig = pickle.loads(pickled)
    copies: Any = config.num_envs_per_env_runner
    try:
        team = _Team(config, tell, alone)
        played = team.play(JOINT_STEPS * (copies if alone else 1))
        if copies == 1 or alone or played.start_s > LIMIT_S / 2:
            return played
        tell("all copies played")
        shared = copies_share_state(config.env_creator(), EnvContext(config.env_config, worker_index=0))
        return replace(played, share_state=shared)
    except EnvironmentFault as fault:
        return Played(str(fault))
    except Exception as error:
        return Played(f"sampling raised {error!r}.")


class _Team:
    """The env runners that will share one process, and the checks that their fragments will go through."""

    def __init__(self, config: TeamConfig, tell: Tell, alone: bool) -> None:
        self._began, self._tell = time.monotonic(), tell
        config = config.copy(copy_frozen=False)
        if alone:
            config.env_runners(num_envs_per_env_runner=1)
        creator = config.env_creator()
        config.env_creator = lambda: self._telling(creator)  # pyright: ignore[reportAttributeAccessIssue]
        self._config = config
        self._runners = [self._runner(config)]
        if not alone and (evaluation := evaluation_in_this_process(config)):
            self._runners.append(self._runner(evaluation))
        self._returns = TeamReturns(1, config.team_reward, str(config.env))

    def play(self, joint_steps: int) -> Played:
        """Samples `joint_steps` at least, unless they are slow."""
        made = time.monotonic()
        for runner in self._runners:
            self._sample(runner, 1)
        begin = time.monotonic()
        done, rate, ask = 1, 0.0, 1
        while (spent := time.monotonic() - begin) < LIMIT_S and (spent < PLAY_S or done < joint_steps):
            since = time.monotonic()
            rate = self._sample(self._runners[0], ask) / (time.monotonic() - since)
            done += ask
            # Few at first, since they may be slow; many later, since each call has a cost of its own.
            ask *= 2
        return Played(None, begin - self._began, begin - made, rate)

    def _sample(self, runner: Any, joint_steps: int) -> int:
        samples = runner.sample(num_timesteps=joint_steps * runner.num_envs)
        self._tell(f"{joint_steps} joint steps played")
        fragments = as_fragments(samples, self._config)
        check_fragments(fragments, str(self._config.env))
        self._returns.add(fragments)
        return sum(map(len, fragments))

    def _runner(self, config: Any) -> Any:
        remote = bool(config.num_env_runners) and not config.in_evaluation
        return config.env_runner_cls(
            config=config, worker_index=int(remote), num_workers=config.num_env_runners
        )

    def _telling(self, creator: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def make(context: Any) -> Any:
            env = creator(context)
            self._tell("a copy made")
            return env

        return make


def evaluation_in_this_process(config: Any) -> Any:
    """The config of an evaluation whose copies stand beside those of training, or None."""
    evaluation = config.get_evaluation_config_object()
    if config.num_env_runners or not config.evaluation_interval or config.evaluation_num_env_runners:
        return None
    evaluation.validate()
    return evaluation
