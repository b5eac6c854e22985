"""One script through both interfaces: who acts and how an episode ends, as the script says."""

from __future__ import annotations

import numpy as np
import pytest
from fake_envs import NAMES, ScriptedMultiAgentEnv, ScriptedParallelEnv
from scripted_runs import KINDS, actions_for, run, steps_until_end

from rllib_haml.sampling.vector_env import VectorTeamEnv


@KINDS
def test_arrays_are_the_scripts_and_in_declared_order(kind):
    vec = run(kind, num_envs=3)
    assert isinstance(vec, VectorTeamEnv)
    assert vec.agents == NAMES
    script = vec._teams[0].env.script
    out = vec.step(actions_for(vec))
    for i, agent in enumerate(NAMES):
        assert out.obs[agent].dtype == np.float32
        assert vec.observation_spaces[agent].dtype == np.float32
        np.testing.assert_array_equal(out.obs[agent], np.stack([script.obs(agent, 0, 1)] * 3))
        np.testing.assert_array_equal(out.reward[:, i], [script.reward(agent, 0, 1)] * 3)
    assert out.active.all()
    assert out.reward.dtype == np.float64


@KINDS
def test_actions_arrive_at_their_agents(kind):
    vec = run(kind)
    batch = {
        "scout": np.array([0, 1]),
        "carrier": np.array([[0.25], [0.5]], np.float32),
        "anchor": np.array([3, 2]),
    }
    vec.step(batch)
    batch["carrier"][:] = 9.0  # the caller may reuse its arrays
    taken = [team.env.taken[0] for team in vec._teams]
    assert [t["scout"] for t in taken] == [0, 1]
    assert [t["anchor"] for t in taken] == [3, 2]
    assert [float(t["carrier"][0]) for t in taken] == [0.25, 0.5]
    assert type(taken[0]["scout"]) is int


@KINDS
@pytest.mark.parametrize("end", ["terminated", "truncated", "both"])
def test_end_of_the_team(kind, end):
    vec = run(kind, end=end, length=4)
    seen = steps_until_end(vec)
    assert len(seen) == 4
    assert not any(out.terminated.any() or out.truncated.any() for out in seen[:-1])
    # Both flags on a time limit mean truncation: the last state has a value.
    assert seen[-1].terminated.all() == (end == "terminated")
    assert seen[-1].truncated.all() == (end != "terminated")
    # The final observation is there to bootstrap from.
    assert seen[-1].active.all()
    np.testing.assert_array_equal(seen[-1].obs["scout"][0], [0, 0, 4])


def test_both_flags_are_terminal_if_an_info_says_so():
    class Says(ScriptedMultiAgentEnv):
        def step(self, action_dict):
            *rest, _ = super().step(action_dict)
            return (*rest, {"carrier": {"terminal": True}})

    last = steps_until_end(run(Says, end="both"))[-1]
    assert last.terminated.all()
    assert not last.truncated.any()


@KINDS
def test_a_dead_agent_is_inactive_zero_and_its_late_reward_is_kept(kind):
    vec = run(kind, deaths={"carrier": 2}, reward_the_dead=True, length=4)
    one, two, three, four = steps_until_end(vec)
    assert one.active[:, 1].all()
    for out in (two, three, four):
        assert not out.active[:, 1].any()
        assert not out.obs["carrier"].any()
        assert out.active[:, [0, 2]].all()
    assert not two.truncated.any()
    assert not two.terminated.any()
    script = vec._teams[0].env.script
    assert two.reward[0, 1] == script.reward("carrier", 0, 2)
    assert four.reward[0, 1] == script.reward("carrier", 0, 4)
    assert "carrier" not in vec._teams[0].env.taken[2]


@KINDS
def test_an_agent_that_dies_as_time_runs_out_has_no_value(kind):
    last = steps_until_end(run(kind, deaths={"carrier": 4}, length=4, end="truncated"))[-1]
    assert last.truncated.all()
    assert last.active.tolist() == [[True, False, True]] * 2


@KINDS
def test_the_team_ends_when_the_last_agent_has_died(kind):
    deaths = {"scout": 1, "carrier": 2, "anchor": 3}
    seen = steps_until_end(run(kind, deaths=deaths, length=50))
    assert len(seen) == 3
    assert seen[-1].terminated.all()
    assert not seen[-1].truncated.any()


@KINDS
def test_a_late_joiner(kind):
    vec = run(kind, joins={"anchor": 2}, length=4)
    one, two, three, _ = steps_until_end(vec)
    assert not one.active[:, 2].any()
    assert not one.obs["anchor"].any()
    assert one.reward[0, 2] == 0
    assert two.active[:, 2].all()
    assert two.obs["anchor"][0, 2] == 2
    assert two.reward[0, 2] == 0
    assert three.reward[0, 2] != 0


def test_an_agent_that_skips_a_step():
    vec = run(ScriptedMultiAgentEnv, skips={"scout": (2,)}, length=4)
    one, two, three, _ = steps_until_end(vec)
    assert one.active[:, 0].all()
    assert not two.active[:, 0].any()
    assert not two.obs["scout"].any()
    assert three.active[:, 0].all()
    assert "scout" not in vec._teams[0].env.taken[2]


@KINDS
def test_rows_are_reset_alone_and_ended_ones_wait(kind):
    vec = run(kind, length=3)
    steps_until_end(vec)
    out = vec.step(actions_for(vec))  # nobody is running
    assert out.truncated.all()
    assert out.obs["scout"][0, 2] == 3
    assert not out.reward.any()
    out = vec.reset([1], [7])
    assert out.truncated.tolist() == [True, False]
    assert out.obs["scout"][:, 1].tolist() == [0, 1]  # episodes
    assert out.obs["scout"][:, 2].tolist() == [3, 0]  # steps
    assert [team.env.seed for team in vec._teams] == [None, 7]
    out = vec.step(actions_for(vec))
    assert out.obs["scout"][:, 2].tolist() == [3, 1]
    assert vec.episode_steps.tolist() == [3, 1]


def test_pettingzoo_end_with_mixed_flags():
    """Some terminated, the rest truncated, in one step: over, and the rest have values."""

    class Mixed(ScriptedParallelEnv):
        def step(self, actions):
            obs, rewards, _, _, infos = super().step(actions)
            self.agents = []
            return obs, rewards, {"scout": True}, {"anchor": True, "carrier": True}, infos

    out = run(Mixed).step(actions_for(run(Mixed)))
    assert out.truncated.all()
    assert not out.terminated.any()
    assert out.active.tolist() == [[False, True, True]] * 2
