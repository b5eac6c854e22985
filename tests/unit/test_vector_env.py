"""One script through both interfaces: the arrays must say what the script says."""

from __future__ import annotations

import pickle

import gymnasium as gym
import numpy as np
import pytest
from fake_envs import (
    NAMES,
    ScriptedMultiAgentEnv,
    ScriptedParallelEnv,
    action_script,
)
from pettingzoo.utils import BaseParallelWrapper
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv

from rllib_haml.modules.heads import make_head
from rllib_haml.modules.model_config import ModelConfig
from rllib_haml.sampling.make_vector import make_vector_team_env
from rllib_haml.sampling.parallel_team_env import ParallelTeamEnv
from rllib_haml.sampling.spaces import choices
from rllib_haml.sampling.vector_env import VectorTeamEnv

KINDS = pytest.mark.parametrize("kind", [ScriptedMultiAgentEnv, ScriptedParallelEnv])


def actions_for(vec, episode=0, step=0):
    """The scripted actions, the same for all sub-environments."""
    one = action_script(vec._teams[0].env, episode, step)
    return {agent: np.stack([action] * vec.num_envs) for agent, action in one.items()}


def run(kind, num_envs=2, **script):
    vec = make_vector_team_env(lambda: kind(**script), num_envs)
    vec.reset(range(num_envs), [None] * num_envs)
    return vec


def steps_until_end(vec):
    """Copies of what is seen after each step of one episode of row 0."""
    seen = []
    for step in range(100):
        out = vec.step(actions_for(vec, step=step))
        seen.append(pickle.loads(pickle.dumps(out)))
        if out.terminated[0] or out.truncated[0]:
            return seen
    raise AssertionError("the episode does not end")


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


class DictEnv(MultiAgentEnv):
    """Nested observations with a mask, as RLlib's action-masking example has them."""

    def __init__(self):
        self.possible_agents = self.agents = ["b", "a"]
        super().__init__()
        box = gym.spaces.Box(0, 255, (2, 2, 3), np.uint8)
        inner = gym.spaces.Dict({"image": box, "cell": gym.spaces.Discrete(9)})
        pair = gym.spaces.Tuple([inner, gym.spaces.Box(-1, 1, (2,), np.float64)])
        mask = gym.spaces.Box(0, 1, (3,), np.int8)
        self.observation_spaces = {
            "b": gym.spaces.Dict({"observations": pair, "action_mask": mask}),
            "a": gym.spaces.Discrete(4),
        }
        moves = gym.spaces.Dict({"go": gym.spaces.Discrete(2), "v": gym.spaces.Box(-1, 1, (2,))})
        self.action_spaces = {"b": gym.spaces.Discrete(3), "a": moves}

    def obs(self, t):
        view = {"image": np.full((2, 2, 3), t, np.uint8), "cell": t}
        return {
            "b": {"observations": (view, np.array([t, 0.5])), "action_mask": np.array([1, 0, 1])},
            "a": t,
        }

    def reset(self, *, seed=None, options=None):
        return self.obs(0), {}

    def step(self, action_dict):
        self.action = action_dict
        rewards = {"a": 1.0, "b": 1.0}
        # The agent with the mask leaves.
        gone = {"b": True, "__all__": False}
        return self.obs(2), rewards, gone, {"__all__": False}, {}


def test_trees_keep_their_structure_and_types():
    vec = make_vector_team_env(DictEnv, 2)
    out = vec.reset([0, 1], [None, None])
    view, pair = out.obs["b"]["observations"]
    assert view["image"].shape == (2, 2, 2, 3)
    assert view["image"].dtype == np.uint8
    assert view["cell"].dtype == np.int64
    assert pair.dtype == np.float32
    assert out.obs["a"].dtype == np.int64
    assert out.action_mask["b"].tolist() == [[True, False, True]] * 2
    assert out.action_mask["b"].dtype == bool
    v = np.array([[0.0, 0.1], [0.2, 0.3]], np.float32)
    out = vec.step({"b": np.array([0, 2]), "a": {"go": np.array([0, 1]), "v": v}})
    action = vec._teams[1].env.action
    assert action["b"] == 2
    assert action["a"]["go"] == 1
    np.testing.assert_array_equal(action["a"]["v"], v[1])
    # Gone: zeros, but a mask that a policy can be run on.
    assert not out.obs["b"]["observations"][0]["image"].any()
    assert out.action_mask["b"].all()
    assert out.obs["a"].tolist() == [2, 2]


def test_mask_from_infos():
    class Masked(ScriptedParallelEnv):
        def reset(self, seed=None, options=None):
            obs, _ = super().reset(seed, options)
            return obs, {"scout": {"action_mask": np.array([0, 1], np.int8)}}

    out = run(Masked).reset([], [])
    assert out.action_mask["scout"].tolist() == [[False, True]] * 2
    assert list(out.action_mask) == ["scout"]


@pytest.mark.parametrize("beside", ["observations", "features"])
def test_mask_in_the_observation_is_found_whatever_else_is_there(beside: str):
    space = gym.spaces.Dict({beside: gym.spaces.Box(0, 1, (1,)), "action_mask": gym.spaces.MultiBinary(2)})

    class Masked(ScriptedParallelEnv):
        def observation_space(self, agent):
            return space

        def reset(self, seed=None, options=None):
            obs, infos = super().reset(seed, options)
            return {a: {beside: np.zeros(1, np.float32), "action_mask": np.array([0, 1])} for a in obs}, infos

    out = run(Masked, agents=("scout",)).reset([0, 1], [None, None])
    assert out.action_mask["scout"].tolist() == [[False, True]] * 2


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


class BrokenState(ScriptedParallelEnv):
    """Declares no state space, and its `state()` fails."""

    state_space = None

    def state(self) -> np.ndarray:
        return self.no_such_attribute


def test_a_state_that_cannot_be_read_is_said_and_not_used(caplog: pytest.LogCaptureFixture) -> None:
    assert make_vector_team_env(BrokenState, 1).state_space is None
    assert "no_such_attribute" in caplog.text


CHOICES: list[tuple[gym.Space, list[int]]] = [
    (gym.spaces.Box(0, 1, (2,)), []),
    (gym.spaces.MultiBinary(3), []),
    (gym.spaces.Discrete(4), [4]),
    (gym.spaces.MultiDiscrete([3, 2]), [3, 2]),
    (gym.spaces.MultiDiscrete([[3, 2], [4, 5]]), [3, 2, 4, 5]),
    (gym.spaces.Tuple([gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(3), gym.spaces.Discrete(2)]), [3, 2]),
    (
        gym.spaces.Dict({"z": gym.spaces.Discrete(2), "a": gym.spaces.MultiDiscrete([5, 6])}),
        [5, 6, 2],  # in the Dict's order, which gymnasium sorts
    ),
]


@pytest.mark.parametrize("space, options", CHOICES, ids=str)
def test_what_a_mask_speaks_of(space: gym.Space, options: list[int]) -> None:
    """In the order in which the policy's family reads it."""
    assert choices(space) == options
    assert make_head(space, ModelConfig()).family.mask_size == sum(options)
