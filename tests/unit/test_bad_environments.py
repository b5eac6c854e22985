"""Every way in which an environment can break: an error that says who, where and what."""

from __future__ import annotations

import pickle

import fake_envs
import gymnasium as gym
import numpy as np
import pytest
from fake_envs import ScriptedMultiAgentEnv, ScriptedParallelEnv, action_script
from pettingzoo import AECEnv

from rllib_haml.sampling import bounds
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.finite import check_finite
from rllib_haml.sampling.make_vector import make_vector_team_env
from rllib_haml.sampling.vector_env import TeamStep

KINDS = pytest.mark.parametrize("kind", [ScriptedMultiAgentEnv, ScriptedParallelEnv])


def play(kind, steps=8, **script):
    """Steps two sub-environments, of which only the second follows the script."""
    scripts = iter([{"length": 50}, {"length": 50, **script}])
    vec = make_vector_team_env(lambda: kind(**next(scripts)), 2)
    check_finite(vec.reset([0, 1], [None, None]), vec.agents, vec.episode_steps, vec.name)
    for step in range(steps):
        one = action_script(vec._teams[0].env, 0, step)
        out = vec.step({agent: np.stack([action] * 2) for agent, action in one.items()})
        check_finite(out, vec.agents, vec.episode_steps, vec.name)
        if ended := np.flatnonzero(out.terminated | out.truncated).tolist():
            vec.reset(ended, [None] * len(ended))


def fault_of(kind, **script):
    with pytest.raises(EnvironmentFault) as caught:
        play(kind, **script)
    fault = caught.value
    # Through Ray it travels pickled.
    again = pickle.loads(pickle.dumps(fault))
    assert (str(again), again.agent, again.sub_env, again.step) == (
        str(fault),
        fault.agent,
        fault.sub_env,
        fault.step,
    )
    return fault


@KINDS
@pytest.mark.parametrize(
    "script, agent, step, words",
    [
        ({"nan_obs": ("carrier", 3)}, "carrier", 3, "observation[1] is nan"),
        ({"nan_obs": ("carrier", 0)}, "carrier", 0, "observation[1] is nan"),
        ({"nan_reward": ("anchor", 2)}, "anchor", 2, "reward is nan"),
        ({"no_reward": ("scout", 2)}, "scout", 2, "acted but got no reward"),
        ({"wrong_shape": ("carrier", 1)}, "carrier", 1, "has shape (5,), its space says (4,)"),
        ({"wrong_shape": ("carrier", 0)}, "carrier", 0, "has shape (5,), its space says (4,)"),
        ({"stranger": 2}, "stranger", 2, "not declare; it declares ['anchor', 'carrier', 'scout']"),
        ({"stranger": 0}, "stranger", 0, "possible_agents does not declare"),
    ],
)
def test_fault_names_agent_place_and_cause(kind, script, agent, step, words):
    fault = fault_of(kind, **script)
    assert fault.agent == agent
    assert fault.sub_env == 1
    assert fault.step == step
    assert words in str(fault)
    assert repr(agent) in str(fault)
    assert "sub-environment 1" in str(fault)


@KINDS
@pytest.mark.parametrize("where, method", [((0, 3), "step"), ((0, 0), "reset"), ((1, 0), "reset")])
def test_an_exception_is_chained_and_placed(kind, where, method):
    fault = fault_of(kind, raises=where, length=4)
    assert "OSError: the simulator lost its licence" in str(fault)
    assert isinstance(fault.__cause__, OSError)
    assert fault.method == method
    assert fault.sub_env == 1
    assert fault.step == where[1]


@KINDS
def test_an_agent_that_appears_twice(kind):
    class Twice(kind):
        def __init__(self):
            super().__init__()
            self.possible_agents = ["scout", "carrier", "scout"]

    with pytest.raises(EnvironmentFault, match=r"'scout'.*appears 2 times"):
        make_vector_team_env(Twice, 1)


@KINDS
def test_an_agent_that_never_appears(kind):
    vec = make_vector_team_env(lambda: kind(joins={"anchor": 99}, length=3), 2)
    vec.reset([0, 1], [None, None])
    batch = {a: np.stack([x] * 2) for a, x in action_script(vec._teams[0].env, 0, 0).items()}
    vec.step(batch)
    vec.step(batch)
    with pytest.raises(EnvironmentFault, match=r"'anchor'.*did not appear in a whole episode"):
        vec.step(batch)


@KINDS
def test_no_agents_at_all(kind):
    class Empty(kind):
        def __init__(self):
            super().__init__()
            self.possible_agents = []

    with pytest.raises(EnvironmentFault, match="possible_agents"):
        make_vector_team_env(Empty, 1)


def test_a_live_agent_without_observation():
    class Blind(ScriptedParallelEnv):
        def reset(self, seed=None, options=None):
            obs, infos = super().reset(seed, options)
            del obs["carrier"]
            self.agents = list(self.possible_agents)
            return obs, infos

    with pytest.raises(EnvironmentFault, match=r"'carrier'.*got no observation"):
        make_vector_team_env(Blind, 1).reset([0], [None])


def test_a_time_limit_without_a_last_observation():
    class Blind(ScriptedMultiAgentEnv):
        def step(self, action_dict):
            obs, *rest = super().step(action_dict)
            return ({} if self.time == self.script.length else obs, *rest)

    def one_step(end):
        vec = make_vector_team_env(lambda: Blind(length=1, end=end), 1)
        vec.reset([0], [None])
        actions = action_script(vec._teams[0].env, 0, 0)
        return vec.step({agent: np.stack([action]) for agent, action in actions.items()})

    assert one_step("terminated").terminated.all()  # nothing follows that would have a value
    with pytest.raises(EnvironmentFault, match="truncated without a last observation"):
        one_step("truncated")


class Flagging(ScriptedMultiAgentEnv):
    """Says how an episode stands by `flags`, agent by agent, and never by `__all__`."""

    flags = staticmethod(lambda env: {})

    def step(self, action_dict):
        obs, rewards, _, _, infos = super().step(action_dict)
        return obs, rewards, self.flags(self), {}, infos


@pytest.mark.parametrize("flagged", [[], ["scout"]])
def test_a_step_that_never_says_whether_the_episode_ends(flagged):
    class Silent(Flagging):
        flags = staticmethod(lambda env: dict.fromkeys(flagged, False))

    fault = fault_of(Silent)
    assert fault.step == 1
    assert "neither '__all__' nor one for every agent" in str(fault)
    assert "write {'__all__': False}" in str(fault)


def test_control_flags_of_all_agents_need_no_all():
    class PettingZoos(Flagging):
        flags = staticmethod(lambda env: dict.fromkeys(env.agents, env.time == 3))

    play(PettingZoos)


def test_control_who_is_done_needs_no_further_flag():
    class Dying(Flagging):
        flags = staticmethod(
            lambda env: (
                dict.fromkeys([*env.agents, *env._dead_now()], False)
                | {agent: True for agent in env._dead_now()}
            )
        )

    play(Dying, deaths={"carrier": 2})


@pytest.mark.parametrize("reward", ["much", "1.5", b"2", None, [1.0, 2.0]])
def test_a_reward_that_is_no_number(reward):
    class Odd(ScriptedMultiAgentEnv):
        def step(self, action_dict):
            obs, rewards, *rest = super().step(action_dict)
            return (obs, {**rewards, "anchor": reward}, *rest)

    with pytest.raises(EnvironmentFault, match=r"'anchor'.*not a number"):
        play(Odd)


@pytest.mark.parametrize("odd", [[0.0, None, 0.0], np.array([0.0, None, 0.0]), ["0", "None", "0"]])
def test_what_is_no_number_in_an_observation_is_not_called_nan(odd):
    class Odd(ScriptedParallelEnv):
        def step(self, actions):
            obs, *rest = super().step(actions)
            return ({**obs, "scout": odd}, *rest)

    fault = fault_of(Odd)
    assert fault.agent == "scout"
    assert "its observation holds" in str(fault)
    assert "not a number" in str(fault)
    assert "nan" not in str(fault)


def test_control_objects_that_are_numbers_are_observations():
    class Objects(ScriptedParallelEnv):
        def step(self, actions):
            obs, *rest = super().step(actions)
            return ({**obs, "scout": np.array([0.0, 1, np.float32(2)], dtype=object)}, *rest)

    play(Objects)


def bounded(low, high, seen, name):
    """An environment called `name` that declares bounds and shows `seen`."""

    class Bounded(ScriptedMultiAgentEnv):
        def __init__(self, **script):
            super().__init__(**script)
            self.observation_spaces["scout"] = gym.spaces.Box(low, high, (3,), np.float32)

        def step(self, action_dict):
            obs, *rest = super().step(action_dict)
            return ({**obs, "scout": np.array([0.0, 0.0, seen])}, *rest)

    Bounded.__name__ = name
    return Bounded


def test_observations_far_outside_of_their_box_are_warned_of_once(caplog, monkeypatch):
    monkeypatch.setattr(bounds.logger, "propagate", True)
    play(bounded(-10, 10, 200.0, "Stray"))
    [record] = caplog.records
    message = record.getMessage()
    assert "Stray: agent 'scout': observation[2] is 200, far outside of its Box from -10 to 10" in message


@pytest.mark.parametrize("low, high, seen", [(-10, 10, 25.0), (0, np.inf, 1e9), (-np.inf, np.inf, -1e9)])
def test_control_observations_near_or_within_their_box(low, high, seen, caplog, monkeypatch):
    monkeypatch.setattr(bounds.logger, "propagate", True)
    play(bounded(low, high, seen, f"Near{low}{high}"))
    assert not caplog.records


def test_overflow_to_float32_counts_as_infinite():
    class Huge(ScriptedParallelEnv):
        def step(self, actions):
            obs, *rest = super().step(actions)
            obs["scout"] = np.array([0.0, 0.0, 1e300])
            return (obs, *rest)

    with (
        pytest.warns(RuntimeWarning, match="overflow"),
        pytest.raises(EnvironmentFault, match=r"'scout'.*observation\[2\] is inf"),
    ):
        play(Huge)


def test_finite_check_of_trees_and_state():
    def step(value, state):
        obs = {"a": {"x": np.zeros((2, 3), np.float32), "y": (np.array([[0.0], [value]]),)}}
        flags = np.zeros(2, bool)
        return TeamStep(obs, np.ones((2, 1), bool), np.zeros((2, 1)), flags, flags, {}, state)

    check_finite(step(1.0, np.zeros((2, 2))), ["a"])
    with pytest.raises(EnvironmentFault, match=r"observation\['y'\]\[0\]\[0\] is -inf") as caught:
        check_finite(step(-np.inf, None), ["a"])
    assert caught.value.sub_env == 1
    with pytest.raises(EnvironmentFault, match=r"state\[1\] is nan"):
        check_finite(step(1.0, np.array([[0, np.nan], [0, 0]])), ["a"])


RETURNED = {
    "observations only": ("reset", lambda good: good[0], "a dict of 3, must return (observations, infos)"),
    "nothing by reset": ("reset", lambda good: None, "None, must return (observations, infos)"),
    "infos in a list": ("reset", lambda good: (good[0], []), "[] as infos, expected a dict with an entry"),
    "nothing": ("step", lambda good: None, "None, expected (observations, rewards, term"),
    "gym's old step": ("step", lambda good: good[:4], "a tuple of 4, expected (observations, rewards, term"),
    "one flag": ("step", lambda good: (*good[:2], True, *good[3:]), "True as terminateds, expected a dict"),
    "one reward": ("step", lambda good: (good[0], 1.0, *good[2:]), "1.0 as rewards, expected a dict"),
}


@KINDS
@pytest.mark.parametrize("what", RETURNED)
def test_what_is_returned_has_the_parts_that_are_expected(kind, what):
    method, spoil, words = RETURNED[what]

    class Malformed(kind):
        def reset(self, **kwargs):
            good = super().reset(**kwargs)
            return spoil(good) if method == "reset" else good

        def step(self, action_dict):
            good = super().step(action_dict)
            return spoil(good) if method == "step" else good

    fault = fault_of(Malformed)
    assert f"{method}() returned {words}" in str(fault)
    assert fault.method == method
    assert "raised" not in str(fault)
    assert fault.__cause__ is None  # a report shows the first of a chain, and this one has the place


def test_control_a_list_and_no_infos_are_well_formed():
    class Terse(ScriptedMultiAgentEnv):
        def reset(self, **kwargs):
            return super().reset(**kwargs)[0], None

        def step(self, action_dict):
            return [*super().step(action_dict)[:4], None]

    play(Terse, length=3)


class TurnBased(AECEnv):
    pass


class Alone(gym.Env):
    pass


@pytest.mark.parametrize(
    "made, words",
    [
        (TurnBased, "turn-based.*aec_to_parallel"),
        (Alone, "single-agent: use `--run PPO`.*make_multi_agent"),
        (lambda: ScriptedParallelEnv, r"a class, not an instance.*ScriptedParallelEnv\(\)"),
        (dict, "got dict.*possible_agents"),
    ],
)
def test_environments_of_another_kind(made, words):
    with pytest.raises(TypeError, match=f"MultiAgentEnv or a PettingZoo ParallelEnv.*{words}"):
        make_vector_team_env(made, 1)


def test_a_space_that_cannot_be_sampled_from():
    class Talks(ScriptedParallelEnv):
        def observation_space(self, agent):
            return gym.spaces.Dict({"word": gym.spaces.Text(4)})

    with pytest.raises(TypeError, match="Text at word"):
        make_vector_team_env(Talks, 1)


def last_lost(kind, what, end="terminated"):
    """`kind` that ends after 3 steps without the last of `what`: 0 observations, 1 rewards."""

    class Lost(kind):
        def step(self, action_dict):
            returned = list(super().step(action_dict))
            if self.time == self.script.length:
                for part in what:
                    returned[part] = {}
            return tuple(returned)

    return fault_of(Lost, length=3, end=end)


@KINDS
@pytest.mark.parametrize("what", [(0, 1), (1,)])
def test_whoever_acted_has_a_last_reward(kind, what):
    fault = last_lost(kind, what)
    assert "it acted but got no reward" in str(fault)
    assert (fault.sub_env, fault.step) == (1, 3)
    assert fault.agent in fake_envs.NAMES


@KINDS
def test_whoever_is_truncated_has_a_last_observation(kind):
    fault = last_lost(kind, (0,), "truncated")
    assert "truncated without a last observation" in str(fault)
    assert fault.step == 3


@KINDS
def test_who_dies_unseen_and_unpaid_is_told_of(kind):
    class Unpaid(kind):
        def step(self, action_dict):
            obs, rewards, *rest = super().step(action_dict)
            if self.time == 2 and self.script.deaths:
                del obs["carrier"], rewards["carrier"]
            return obs, rewards, *rest

    fault = fault_of(Unpaid, deaths={"carrier": 2}, length=4)
    assert fault.agent == "carrier"
    assert fault.step == 2


def test_control_who_skips_steps_may_be_paid_later():
    class Later(ScriptedMultiAgentEnv):
        def step(self, action_dict):
            obs, rewards, *rest = super().step(action_dict)
            if "carrier" not in obs:
                del rewards["carrier"]
            return obs, rewards, *rest

    play(Later, skips={"carrier": (2,)}, length=4)


def test_a_reset_after_which_nobody_acts():
    class Empty(ScriptedParallelEnv):
        def reset(self, seed=None, options=None):
            returned = super().reset(seed, options)
            self.agents = []
            return returned

    with pytest.raises(EnvironmentFault, match=r"in reset\(\), sub-environment 0.*nobody acts"):
        make_vector_team_env(Empty, 1).reset([0], [None])
