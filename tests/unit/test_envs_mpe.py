"""The particle environments: names, unequal spaces, rewards, exact continuation."""

from __future__ import annotations

import pickle

import gymnasium as gym
import numpy as np
import pytest

from rllib_haml.envs import mpe
from rllib_haml.sampling.make_vector import make_vector_team_env

SCENARIOS = pytest.mark.parametrize("scenario", ["spread", "reference", "speaker_listener"])


@pytest.mark.parametrize("name", ["simple_spread_v3", "simple_spread", "spread"])
def test_names(name):
    assert mpe.full_name(name) == "simple_spread_v3"


@pytest.mark.parametrize("name, near", [("spred", "spread"), ("simple_tag_v3", "by path")])
def test_unknown_names(name, near):
    with pytest.raises(ValueError, match=near):
        mpe.make(name)


def test_spaces_stay_unequal():
    vec = make_vector_team_env(lambda: mpe.make("speaker_listener"), 2)
    assert vec.agents == ("speaker_0", "listener_0")
    assert [vec.observation_spaces[a].shape for a in vec.agents] == [(3,), (11,)]
    assert [vec.action_spaces[a].n for a in vec.agents] == [3, 5]
    out = vec.reset([0, 1], [0, 1])
    assert out.state.shape == (2, 14)
    joint = np.concatenate([out.obs[a] for a in vec.agents], axis=1)
    np.testing.assert_array_equal(out.state, joint)


def test_keywords_reach_mpe2():
    env = mpe.make("spread", continuous_actions=True, max_cycles=3, local_ratio=0.0)
    assert isinstance(env.action_space("agent_0"), gym.spaces.Box)
    env.reset(seed=0)
    for step in range(1, 4):
        *_, rewards, _, truncations, _ = env.step({a: np.full(5, 0.3, np.float32) for a in env.agents})
        assert len(set(rewards.values())) == 1
        assert all(truncations.values()) == (step == 3)


def test_rewards_are_unequal_by_default():
    env = mpe.make("spread")
    env.reset(seed=1)
    seen = [env.step({a: 1 + i for i, a in enumerate(env.agents)})[1] for _ in range(24)]
    assert any(len(set(rewards.values())) > 1 for rewards in seen)


def replay(env, start, steps):
    generator = np.random.default_rng(4)
    seen = []
    for step in range(steps):
        draws = generator.random(len(env.possible_agents))
        if step < start:
            continue
        if not env.agents:
            env.reset()
        actions = {
            agent: int(draw * env.action_space(agent).n)
            for agent, draw in zip(env.possible_agents, draws, strict=True)
        }
        obs, rewards, terminations, truncations, _ = env.step(actions)
        arrays = [obs[agent].tobytes() for agent in env.possible_agents]
        seen.append((arrays, dict(rewards), terminations, truncations, env.state().tobytes()))
    return seen


@SCENARIOS
@pytest.mark.parametrize("cut", [0, 10, 25])  # at the reset, inside, at the end of an episode
def test_restored_state_continues_bit_for_bit(scenario, cut):
    env, other = mpe.make(scenario), mpe.make(scenario)
    env.reset(seed=2)
    replay(env, 0, cut)
    state = pickle.loads(pickle.dumps(env.get_state()))
    other.set_state(state)
    expected = replay(env, cut, cut + 70)
    assert replay(other, cut, cut + 70) == expected
    # The state is a copy: it can be set again after the environment has moved on.
    other.set_state(state)
    assert replay(other, cut, cut + 70) == expected
