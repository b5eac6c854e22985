"""PettingZoo's environments as RLlib's, ours and its own, and environments that are batched already."""

from __future__ import annotations

import numpy as np
import pytest
from fake_envs import NAMES, ScriptedParallelEnv
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv

from rllib_haml.sampling.make_vector import make_vector_team_env
from rllib_haml.sampling.parallel_team_env import ParallelTeamEnv


@pytest.mark.parametrize("deaths", [{}, {"carrier": 2}])
@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_parallel_team_env_tells_rllib_the_same_story(end, deaths):
    env = ParallelTeamEnv(ScriptedParallelEnv(end=end, length=3, deaths=deaths))
    assert env.possible_agents == list(NAMES)
    obs, infos = env.reset(seed=1)
    assert list(obs) == list(infos) == env.agents == list(NAMES)
    assert all(obs[a] in env.observation_spaces[a] for a in obs)
    gone = set()
    for step in range(1, 4):
        actions = {a: env.action_spaces[a].sample() for a in obs if a not in gone}
        obs, rewards, terminateds, truncateds, _ = env.step(actions)
        assert env.agents == [a for a in NAMES if a in actions]
        assert set(rewards) == set(actions)
        gone |= {a for a, flag in terminateds.items() if flag and a != "__all__"}
        assert set(truncateds) == {"__all__"}
        assert all(o.dtype == np.float32 for o in obs.values())
        assert gone == {a for a, when in deaths.items() if when <= step}
        np.testing.assert_array_equal(env.state()[:2], [0, step])
    assert terminateds["__all__"] == (end == "terminated")
    assert truncateds["__all__"] == (end == "truncated")


def test_stock_episode_bootstraps_on_a_time_limit():
    """RLlib's own bookkeeping, fed by `ParallelTeamEnv`, must see a truncation and no more."""
    from ray.rllib.env.multi_agent_episode import MultiAgentEpisode

    env = ParallelTeamEnv(ScriptedParallelEnv(length=3, deaths={"carrier": 2}))
    episode = MultiAgentEpisode()
    obs, infos = env.reset()
    episode.add_env_reset(observations=obs, infos=infos)
    while not episode.is_done:
        actions = {a: env.action_spaces[a].sample() for a in episode.get_agents_to_act()}
        obs, rewards, terminateds, truncateds, infos = env.step(actions)
        episode.add_env_step(obs, actions, rewards, infos, terminateds=terminateds, truncateds=truncateds)
    assert episode.is_truncated
    assert not episode.is_terminated
    assert episode.agent_episodes["carrier"].is_terminated
    assert not episode.agent_episodes["scout"].is_terminated


@pytest.mark.parametrize("length, deaths", [(1, {}), (4, {"carrier": 1})])
def test_parallel_team_env_passes_rllibs_own_check(length, deaths):
    from ray.rllib.utils.pre_checks.env import check_multiagent_environments

    check_multiagent_environments(ParallelTeamEnv(ScriptedParallelEnv(length=length, deaths=deaths)))


def test_rllibs_wrapper_is_opened_and_its_shuffled_order_ignored():
    vec = make_vector_team_env(lambda: ParallelPettingZooEnv(ScriptedParallelEnv()), 1)
    assert vec.agents == NAMES
    assert vec.reset([0], [3]).state is not None
    vec = make_vector_team_env(lambda: ParallelTeamEnv(ScriptedParallelEnv()), 1)
    assert isinstance(vec._teams[0].env, ScriptedParallelEnv)


def test_batched_environments_make_their_own_vectors():
    class Batched:
        agents = NAMES
        state_space = None

        def __init__(self):
            self.num_envs = 1
            self.observation_spaces = self.action_spaces = {}

        def make_vec(self, num_envs):
            self.num_envs = num_envs
            return self

        def reset(self, rows, seeds): ...
        def step(self, actions): ...
        def close(self): ...

    assert make_vector_team_env(Batched, 64).num_envs == 64
