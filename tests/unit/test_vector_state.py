"""The environment's state: the global one that the critic reads, and the one that an episode goes on from."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from fake_envs import NAMES, ScriptedMultiAgentEnv, ScriptedParallelEnv
from pettingzoo.utils import BaseParallelWrapper
from scripted_runs import KINDS, actions_for, run, steps_until_end

from rllib_haml.sampling.make_vector import make_vector_team_env


def test_global_state_and_one_that_is_gone_at_the_end(caplog):
    class Fragile(ScriptedParallelEnv):
        def state(self):
            if not self.agents:
                raise AttributeError("torn down")
            return super().state()

    vec = run(Fragile, length=3, deaths={"carrier": 2})
    states = [out.state[0].tolist() for out in steps_until_end(vec)]
    assert states == [[0, 1, 3], [0, 2, 2], [0, 2, 2]]
    assert caplog.text.count("Fragile.state() raises AttributeError after the last step") == 1
    assert run(ScriptedMultiAgentEnv).reset([], []).state is None


def test_state_space_is_read_off_where_it_is_not_declared():
    class Undeclared(ScriptedParallelEnv):
        state_space = None

    vec = run(Undeclared)
    assert vec.state_space.shape == (3,)
    assert vec.reset([], []).state.dtype == np.float32


@KINDS
def test_restored_state_continues_in_a_fresh_environment(kind):
    def fresh():
        return run(kind, deaths={"carrier": 2}, length=5, joins={"anchor": 1})

    original, copy = fresh(), fresh()
    for step in range(3):
        original.step(actions_for(original, step=step))
    assert original.has_state
    now = copy.set_state(pickle.loads(pickle.dumps(original.get_state())))
    expected = original._step
    for step in range(3, 7):
        for name in ("active", "reward", "terminated", "truncated", "state"):
            np.testing.assert_array_equal(getattr(now, name), getattr(expected, name))
        for agent in NAMES:
            np.testing.assert_array_equal(now.obs[agent], expected.obs[agent])
        if expected.truncated.any():
            expected, now = (v.reset([0, 1], [1, 1]) for v in (original, copy))
        expected = original.step(actions_for(original, step=step))
        now = copy.step(actions_for(copy, step=step))
    assert original.episode_steps.tolist() == copy.episode_steps.tolist()


def test_no_state_without_the_environments_own():
    vec = make_vector_team_env(lambda: BaseParallelWrapper(ScriptedParallelEnv()), 1)
    assert not vec.has_state  # the wrapper forwards get_state, but has things of its own to lose
    with pytest.raises(NotImplementedError, match="continued"):
        vec.get_state()


class BrokenState(ScriptedParallelEnv):
    """Declares no state space, and its `state()` fails."""

    state_space = None

    def state(self) -> np.ndarray:
        return self.no_such_attribute


def test_a_state_that_cannot_be_read_is_said_and_not_used(caplog: pytest.LogCaptureFixture) -> None:
    assert make_vector_team_env(BrokenState, 1).state_space is None
    assert "no_such_attribute" in caplog.text
