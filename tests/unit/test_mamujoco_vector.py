"""The batched MAMuJoCo is the serial one, bit for bit; what it cannot batch it leaves alone."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from pettingzoo.utils import BaseParallelWrapper

from rllib_haml.envs import mamujoco
from rllib_haml.envs.mamujoco_vector import MAMuJoCoVector
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.make_vector import make_vector_team_env
from rllib_haml.sampling.parallel_team_env import ParallelTeamEnv
from rllib_haml.sampling.pettingzoo_team import PettingZooTeam
from rllib_haml.sampling.serial_vector_env import SerialVectorTeamEnv

E = 3
# HalfCheetah meets its time limit, Hopper falls every few steps, Ant has a clipped observation and
# does both; the splits 6x1 and 3x1 give their agents observations of several lengths.
ROBOTS = {
    "local": {"scenario": "HalfCheetah", "agent_conf": "6x1", "max_episode_steps": 40},
    "further split": {"scenario": "HalfCheetah", "agent_conf": "3x2", "max_episode_steps": 40},
    "clipped": {"scenario": "Ant", "agent_conf": "4x2", "max_episode_steps": 30},
    "falls": {"scenario": "Hopper", "agent_conf": "3x1", "max_episode_steps": 25},
    "full": {"scenario": "Hopper", "agent_conf": "3x1", "observation": "full"},
    "standardised": {"scenario": "Hopper", "agent_conf": "3x1", "observation": "full", "standardise": True},
}


def vectors(**robot):
    batched = make_vector_team_env(lambda: mamujoco.make(**robot), E)
    serial = SerialVectorTeamEnv([PettingZooTeam(mamujoco.make(**robot)) for _ in range(E)])
    assert type(batched) is MAMuJoCoVector
    return batched, serial


def content(step):
    return pickle.dumps(
        (
            [(agent, x.dtype, x.tobytes()) for agent, x in step.obs.items()],
            *(x.tobytes() for x in (step.active, step.reward, step.terminated, step.truncated, step.state)),
        )
    )


def random_actions(vec, generator):
    return {
        agent: generator.uniform(-1, 1, (E, *space.shape)).astype(np.float32)
        for agent, space in vec.action_spaces.items()
    }


def play(vec, steps, seed=0):
    """What is seen of `steps` joint steps; an episode that ended waits for its reset now and then."""
    generator = np.random.default_rng(seed)
    seen, ends = [], 0
    for _ in range(steps):
        step = vec.step(random_actions(vec, generator))
        seen += [content(step), vec.episode_steps.tolist()]
        over = np.flatnonzero(step.terminated | step.truncated).tolist()
        if over and generator.random() < 0.7:
            ends += len(over)
            seen.append(content(vec.reset(over, [None] * len(over))))
    return seen, ends


def start(vec, seed=5):
    return content(vec.reset(range(E), range(seed, seed + E)))


@pytest.mark.parametrize("robot", ROBOTS)
def test_batched_is_serial_over_several_episodes(robot):
    batched, serial = vectors(**ROBOTS[robot])
    assert batched.observation_spaces == serial.observation_spaces
    assert batched.action_spaces == serial.action_spaces
    assert batched.state_space == serial.state_space
    assert start(batched) == start(serial)
    (one, ends), (two, _) = play(batched, 150), play(serial, 150)
    assert one == two
    assert ends > E
    start(serial, seed=6)
    assert play(serial, 150)[0] != one, "control: other episodes are seen to be others"


@pytest.mark.parametrize("robot", ROBOTS)
def test_states_pass_between_batched_and_serial(robot):
    batched, serial = vectors(**ROBOTS[robot])
    start(batched)
    play(batched, 33)
    serial.set_state(pickle.loads(pickle.dumps(batched.get_state())))
    rest = play(batched, 60, seed=1)
    assert play(serial, 60, seed=1) == rest
    state = pickle.loads(pickle.dumps(serial.get_state()))
    rest = play(serial, 60, seed=2)
    fresh, _ = vectors(**ROBOTS[robot])
    fresh.set_state(state)
    assert play(fresh, 60, seed=2) == rest


def test_an_action_that_is_not_finite_is_refused_with_its_place():
    batched, _ = vectors()
    start(batched)
    generator = np.random.default_rng(0)
    batched.step(random_actions(batched, generator))
    actions = random_actions(batched, generator)
    actions["agent_1"][2, 0] = np.nan
    with pytest.raises(EnvironmentFault, match=r"sub-environment 2, step 2 .*not finite"):
        batched.step(actions)


def test_a_simulator_that_raises_is_named():
    batched, _ = vectors()
    start(batched)

    def step(action):
        raise OSError("the simulator lost its licence")

    batched._robots[1].env.unwrapped.step = step
    with pytest.raises(EnvironmentFault, match=r"sub-environment 1, step 1 .*lost its licence") as caught:
        batched.step(random_actions(batched, np.random.default_rng(0)))
    assert isinstance(caught.value.__cause__, OSError)


def test_actions_are_not_kept_and_of_their_agents_shape():
    batched, _ = vectors()
    start(batched)
    actions = random_actions(batched, np.random.default_rng(0))
    batched.step(actions)
    controls = [robot.env.unwrapped.data.ctrl.copy() for robot in batched._robots]
    np.testing.assert_array_equal(controls, np.concatenate([*actions.values()], axis=1))
    actions["agent_0"] = actions["agent_0"][:, :2]
    with pytest.raises(ValueError, match="shape"):
        batched.step(actions)


class Patient(mamujoco.MAMuJoCo):
    """May have changed what a step is."""


@pytest.mark.parametrize(
    "entry_point",
    [
        lambda: Patient(mamujoco.make().inner),
        lambda: BaseParallelWrapper(mamujoco.make()),
        lambda: ParallelTeamEnv(BaseParallelWrapper(mamujoco.make())),
        lambda: mamujoco.make("Reacher", "2x1"),  # sees sines
    ],
)
def test_what_may_step_otherwise_is_not_batched(entry_point):
    assert type(make_vector_team_env(entry_point, 2)) is SerialVectorTeamEnv


def test_control_what_comes_from_the_registry_is_batched():
    assert type(make_vector_team_env(lambda: ParallelTeamEnv(mamujoco.make()), 2)) is MAMuJoCoVector


def test_robots_that_are_laid_out_differently_are_not_batched():
    sights = iter([1, 0])
    vec = make_vector_team_env(lambda: mamujoco.make(agent_obsk=next(sights)), 2)
    assert type(vec) is SerialVectorTeamEnv
    confs = iter(["2x3", "3x2"])
    with pytest.raises(EnvironmentFault, match="agents"):
        make_vector_team_env(lambda: mamujoco.make(agent_conf=next(confs)), 2)
