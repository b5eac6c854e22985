"""What one env runner gives to an evaluation, and the results of all together: whole episodes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from rllib_haml.sampling.from_episodes import as_fragments
from rllib_haml.sampling.metrics import rewards_of
from rllib_haml.sampling.team_returns import summary


class Played(NamedTuple):
    """Whole episodes of one env runner, in the order in which they began.

    Attributes:
        returns: Of each episode, the team's return.
        outcomes: What each came to beside it.
        env_steps, agent_steps: Of all of them.
        metrics: RLlib's, of the env runner.
        number: Of the evaluation that asked.
    """

    returns: list[float]
    outcomes: list[dict[str, float]]
    env_steps: int
    agent_steps: int
    metrics: Any
    number: int


def play(env_runner: Any, *, shares: Mapping[int, int], explore: bool, number: int) -> Played:
    """Plays as many episodes as are this env runner's share; `number` is the evaluation's.

    Raises:
        EnvironmentFault: An environment is at fault.
    """
    config = env_runner.config
    episodes = env_runner.sample(num_episodes=shares[env_runner.worker_index or 0], explore=explore)
    fragments = as_fragments(episodes, config)
    return Played(
        [float(rewards_of(f, config.team_reward, str(config.env)).sum()) for f in fragments],
        [fragment.outcome for fragment in fragments],
        sum(map(len, fragments)),
        sum(fragment.agent_steps() for fragment in fragments),
        env_runner.get_metrics(),
        number,
    )


def dealt(amount: int, env_runners: Sequence[int]) -> dict[int, int]:
    """`amount` in nearly equal shares, none of them empty: some of the env runners may get none."""
    each, more = divmod(amount, len(env_runners))
    shares = {one: each + (place < more) for place, one in enumerate(env_runners)}
    return {one: share for one, share in shares.items() if share}


def results_of(played: Sequence[Played]) -> list[Any]:
    """What RLlib's logger merges: the env runners' own metrics, and the team's returns of all episodes."""
    logger = MetricsLogger()
    returns = [value for one in played for value in one.returns]
    logger.log_dict(summary(returns, [told for one in played for told in one.outcomes]), window=1)
    return [*(one.metrics for one in played), logger.reduce()]
