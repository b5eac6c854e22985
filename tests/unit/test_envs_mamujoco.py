"""MAMuJoCo: equal to gymnasium-robotics where it is meant to be, exact where it is continued."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest

from rllib_haml.envs import mamujoco
from rllib_haml.envs.factorisations import BUILT_IN, FURTHER
from rllib_haml.envs.mamujoco_vector import MAMuJoCoVector
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.make_vector import make_vector_team_env

# Observation lengths with agent_obsk 1, as gymnasium-robotics 1.4 gives them.
DIMENSIONS = {
    ("HalfCheetah", "2x3"): [12, 12],
    ("HalfCheetah", "6x1"): [9, 9, 8, 9, 9, 8],
    ("HalfCheetah", "3x2"): [11, 12, 10],
    ("Ant", "2x4"): [63, 63],
    ("Ant", "2x4d"): [63, 63],
    ("Ant", "4x2"): [42] * 4,
    ("Ant", "8x1"): [29, 32] * 4,
    ("Walker2d", "2x3"): [12, 12],
    ("Walker2d", "3x2"): [11, 12, 10],
    ("Walker2d", "6x1"): [9, 9, 8] * 2,
    ("Hopper", "3x1"): [8, 9, 8],
    ("Humanoid", "9|8"): [242, 170],
    ("HumanoidStandup", "9|8"): [242, 170],
    ("Swimmer", "2x1"): [6, 6],
    ("Reacher", "2x1"): [7, 10],
    ("Pusher", "3p"): [16, 13, 16],
    ("ManySegmentSwimmer", "10x2"): [5, *[6] * 8, 5],
    ("ManySegmentAnt", "3x1"): [61, 63, 63],
}


def random_actions(env, generator):
    return {
        agent: generator.uniform(env.action_space(agent).low, env.action_space(agent).high).astype(np.float32)
        for agent in env.possible_agents
    }


@pytest.mark.parametrize("scenario, conf", DIMENSIONS)
def test_observations_are_those_of_gymnasium_robotics(scenario, conf):
    env = mamujoco.make(scenario, conf)
    assert [env.observation_space(a).shape[0] for a in env.possible_agents] == DIMENSIONS[scenario, conf]
    generator = np.random.default_rng(1)
    obs, _ = env.reset(seed=1)
    for _ in range(60):
        for agent, expected in env.inner._get_obs().items():
            np.testing.assert_array_equal(obs[agent], expected)
        np.testing.assert_array_equal(env.state(), env.inner.state())
        if not env.agents:
            env.reset()
        obs, *_ = env.step(random_actions(env, generator))


@pytest.mark.parametrize("scenario, conf", [("HalfCheetah", "2x3"), ("Ant", "4x2")])
def test_steps_are_those_of_gymnasium_robotics(scenario, conf):
    from gymnasium_robotics import mamujoco_v1

    ours, theirs = mamujoco.make(scenario, conf), mamujoco_v1.parallel_env(scenario, conf)
    ours.reset(seed=5)
    theirs.reset(seed=5)
    generator = np.random.default_rng(5)
    for _ in range(50):
        actions = random_actions(ours, generator)
        a, b = ours.step(actions), theirs.step(actions)
        for mine, other in zip(a[:4], b[:4], strict=True):
            for agent in ours.possible_agents:
                np.testing.assert_array_equal(mine[agent], other[agent])
        if not ours.agents:
            ours.reset()
            theirs.reset()


def test_every_factorisation_exists_and_uses_each_actuator_once():
    for scenario, confs in [*BUILT_IN.items(), *FURTHER.items()]:
        for conf in confs:
            if scenario == "CoupledHalfCheetah":
                continue
            env = mamujoco.make(scenario, conf)
            joints = sum(env.action_space(a).shape[0] for a in env.possible_agents)
            assert joints == env.env.action_space.shape[0]


def test_further_split_acts_on_the_actuators_in_order():
    env = mamujoco.make("HalfCheetah", "3x2")
    env.reset(seed=0)
    env.step({f"agent_{i}": np.array([0.1, 0.2]) * (i + 1) for i in range(3)})
    np.testing.assert_allclose(env.env.unwrapped.data.ctrl, [0.1, 0.2, 0.2, 0.4, 0.3, 0.6])


@pytest.mark.parametrize("standardise", [False, True])
def test_full_observation(standardise):
    env = mamujoco.make("HalfCheetah", "2x3", observation="full", standardise=standardise)
    obs, _ = env.reset(seed=0)
    state = env.inner.state()
    for i, agent in enumerate(["agent_0", "agent_1"]):
        expected = np.concatenate([state, np.eye(2)[i]])
        if standardise:
            expected = (expected - np.mean(expected)) / np.std(expected)
        np.testing.assert_allclose(obs[agent], expected, rtol=1e-12)
        assert env.observation_space(agent).shape == (19,)
    expected = (state - np.mean(state)) / np.std(state) if standardise else state
    np.testing.assert_allclose(env.state(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"agent_obsk": None}, "single agent.*observation: full"),
        ({"scenario": "HalfCheeta"}, "unknown.*HalfCheetah, .*ManySegmentAnt"),
        ({"agent_conf": "4x2"}, "unknown agent_conf '4x2'.*2x3, 6x1, 3x2"),
        ({"scenario": "ManySegmentAnt", "agent_conf": "two"}, "segments per agent"),
        ({"scenario": "InvertedPendulum"}, "one actuator"),
        ({"observation": "all"}, '"local" or "full"'),
        ({"standardise": True}, "observation: full"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        mamujoco.make(**arguments)


def test_coupled_half_cheetah_is_refused_with_the_reason():
    import mujoco

    if tuple(int(part) for part in mujoco.__version__.split(".")[:2]) >= (3, 6):
        with pytest.raises(RuntimeError, match=r"tendons.*mujoco<3.6"):
            mamujoco.make("CoupledHalfCheetah", "1p1")
    else:
        assert mamujoco.make("CoupledHalfCheetah", "1p1").possible_agents


def test_an_action_that_is_not_finite_is_an_error():
    env = mamujoco.make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="not finite"):
        env.step({"agent_0": np.zeros(3), "agent_1": np.array([0, np.nan, 0])})


def replay(env, agents, start, steps):
    """Observations and rewards of a fixed sequence of actions, over episode ends."""
    generator = np.random.default_rng(9)
    seen = []
    for step in range(steps):
        actions = {
            agent: generator.uniform(-0.4, 0.4, space.shape).astype(np.float32)
            for agent, space in agents.items()
        }
        if step < start:
            continue
        if not env.agents:
            env.reset()
        obs, reward, terminated, truncated, _ = env.step(actions)
        seen.append((pickle.dumps(obs), reward, terminated, truncated, env.state().tobytes()))
    return seen


# Ant rewards movement by positions that lag a substep behind; Hopper falls every few steps;
# HalfCheetah meets its time limit.
@pytest.mark.parametrize(
    "scenario, conf, limit",
    [("HalfCheetah", "2x3", 150), ("Ant", "4x2", 90), ("Hopper", "3x1", 1000)],
)
def test_restored_state_continues_bit_for_bit(scenario, conf, limit):
    def make():
        env = mamujoco.make(scenario, conf, max_episode_steps=limit)
        env.reset(seed=11)
        return env

    env, other = make(), make()
    replay(env, env.action_spaces, 0, 37)
    state = pickle.loads(pickle.dumps(env.get_state()))
    other.reset(seed=99)
    replay(other, env.action_spaces, 0, 12)
    other.set_state(state)
    rest, again = (replay(e, e.action_spaces, 37, 337) for e in (env, other))
    assert rest == again
    assert any((not r[2]["agent_0"] and r[3]["agent_0"]) or r[2]["agent_0"] for r in rest)


def test_vector_state_in_the_middle_of_episodes_continues_bit_for_bit():
    def fresh(seed):
        vec = make_vector_team_env(lambda: mamujoco.make(max_episode_steps=60), 2)
        vec.reset([0, 1], [seed, seed + 1])
        return vec

    def go(vec, steps, seed):
        generator = np.random.default_rng(seed)
        seen = []
        for _ in range(steps):
            actions = {a: generator.uniform(-1, 1, (2, 3)) for a in vec.agents}
            out = vec.step(actions)
            seen.append(pickle.dumps((out.obs, out.reward, out.state, out.truncated, out.active)))
            if out.truncated.any():
                vec.reset([0, 1], [None, None])
        return seen

    one, two = fresh(1), fresh(50)
    go(one, 25, 0)
    two.set_state(pickle.loads(pickle.dumps(one.get_state())))
    assert go(one, 300, 1) == go(two, 300, 1)


def build_many_segments(barrier):
    barrier.wait()
    for _ in range(4):
        mamujoco.make("ManySegmentSwimmer", "5x2").close()


def test_many_segment_robots_can_be_built_by_several_processes_at_once():
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    workers = [context.Process(target=build_many_segments, args=(barrier,), daemon=True) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4


def test_a_robot_that_fails_leaves_the_others_their_steps(monkeypatch):
    """Rewards, ends and observations of the others are those of a run in which nothing failed."""

    def walk(fails_at):
        env = make_vector_team_env(lambda: mamujoco.make("HalfCheetah", "2x3", max_episode_steps=4), 3)
        assert type(env) is MAMuJoCoVector
        move = env._robots[1].move

        def moved(command):
            if env.episode_steps[1] == fails_at:
                raise OSError("a joint is gone")
            return move(command)

        monkeypatch.setattr(env._robots[1], "move", moved)
        env.reset(range(3), [1, 2, 3])
        generator, seen = np.random.default_rng(0), []
        for _ in range(4):
            actions = {a: generator.uniform(-1, 1, (3, 3)).astype(np.float32) for a in env.agents}
            fault = None
            try:
                env.step(actions)
            except EnvironmentFault as raised:
                fault = (raised.sub_env, raised.step)
            step = env._step
            arrays = (*step.obs.values(), step.state, step.reward, step.terminated, step.truncated)
            seen.append((fault, [array[[0, 2]].copy() for array in arrays]))
        return seen

    sound, faulty = walk(None), walk(2)
    assert [fault for fault, _ in faulty] == [None, (1, 2), None, None]
    for (_, one), (_, other) in zip(sound, faulty, strict=True):
        for left, right in zip(one, other, strict=True):
            np.testing.assert_array_equal(left, right)
    assert sound[3][1][-1].all(), "the episodes of the others end with their fourth step"
