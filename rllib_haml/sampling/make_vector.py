"""From what a user has, an environment of some kind, to a `VectorTeamEnv`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pettingzoo import ParallelEnv
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv, PettingZooEnv

from rllib_haml.sampling.no_team import way_out
from rllib_haml.sampling.parallel_team_env import ParallelTeamEnv
from rllib_haml.sampling.pettingzoo_team import PettingZooTeam
from rllib_haml.sampling.rllib_team import RLlibTeam
from rllib_haml.sampling.serial_vector_env import SerialVectorTeamEnv
from rllib_haml.sampling.team_env import TeamEnv
from rllib_haml.sampling.vector_env import VectorTeamEnv

# Exactly these types: a subclass may have changed what `step` does. RLlib's wrapper around
# PettingZoo shuffles its agents, and ours would only convert everything twice.
_TRANSPARENT = (ParallelPettingZooEnv, ParallelTeamEnv)


def make_vector_team_env(entry_point: Callable[[], Any], num_envs: int) -> VectorTeamEnv:
    """E environments of one team.

    Args:
        entry_point: Makes one environment. If that has a method `make_vec(num_envs)` (a natively
            batched one), that method makes all of them. If its class has a static method `batch`,
            that makes one `VectorTeamEnv` of all of them.
        num_envs: E.

    Raises:
        TypeError: The environment is of a kind that cannot be stepped as a team.
        EnvironmentFault: It declares its agents or spaces wrongly.
    """
    env = entry_point()
    if hasattr(env, "make_vec"):
        return env.make_vec(num_envs)
    envs = [env, *(entry_point() for _ in range(num_envs - 1))]
    inner = [env.par_env if type(env) in _TRANSPARENT else env for env in envs]
    kind = type(inner[0])
    # The class's own method, not an inherited one: a subclass may have changed what `step` does.
    if "batch" in vars(kind) and all(type(env) is kind for env in inner):
        return kind.batch(inner)  # pyright: ignore[reportAttributeAccessIssue]
    return SerialVectorTeamEnv([as_team_env(env) for env in envs], lambda: as_team_env(entry_point()))


def as_team_env(env: Any) -> TeamEnv:
    """Adapts one environment.

    Raises:
        TypeError: See `make_vector_team_env`.
    """
    if type(env) in _TRANSPARENT:
        return PettingZooTeam(env.par_env)
    if isinstance(env, ParallelEnv):
        return PettingZooTeam(env)
    if isinstance(env, ParallelPettingZooEnv):
        return RLlibTeam(env, agents=env.par_env.possible_agents)
    if isinstance(env, MultiAgentEnv) and not isinstance(env, PettingZooEnv):
        return RLlibTeam(env)
    raise TypeError(_unsupported(env))


def _unsupported(env: Any) -> str:
    given = f"{env!r} (a class, not an instance)" if isinstance(env, type) else type(env).__name__
    return (
        "expected an RLlib MultiAgentEnv or a PettingZoo ParallelEnv, whose agents act at the same time, "
        f"but got {given}. {way_out(env)}"
    )
