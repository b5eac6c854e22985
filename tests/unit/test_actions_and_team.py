"""What reaches the environment equals RLlib's own way; the team's reward and returns equal plain loops."""

from __future__ import annotations

import pickle
from copy import deepcopy
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import tree
from fragments import TEAM, make_fragment, rows_of
from gymnasium import spaces
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.spaces.space_utils import clip_action, get_base_struct_from_space, unsquash_action

from rllib_haml.sampling.actions import ToEnvActions, to_env_action
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.fragment import JointFragment
from rllib_haml.sampling.metrics import EpisodeMetrics, rewards_of
from rllib_haml.sampling.team import Team, TeamReward, UnequalRewards, team_reward
from rllib_haml.sampling.team_returns import TeamReturns

E = 6
INF = np.inf
BOXES: dict[str, spaces.Space] = {
    "symmetric": spaces.Box(-1, 1, (3,), np.float32),
    "shifted": spaces.Box(2.0, 7.0, (2,), np.float32),
    "each its own": spaces.Box(np.float32([-3.0, 0.5]), np.float32([0.0, 9.0]), dtype=np.float32),
    "float64": spaces.Box(-0.4, 0.4, (2,), np.float64),
    "table": spaces.Box(-2, 5, (2, 3), np.float32),
    "number": spaces.Box(-2, 5, (), np.float32),
    "unbounded": spaces.Box(-INF, INF, (2,), np.float32),
    "half bounded": spaces.Box(np.float32([0.0, -INF]), np.float32([INF, 1.0]), dtype=np.float32),
    "integers": spaces.Box(3, 9, (2,), np.int32),
    "discrete": spaces.Discrete(4),
    "multi discrete": spaces.MultiDiscrete([3, 4]),
    "tree": spaces.Dict({"go": spaces.Box(0, 3, (2,), np.float32), "say": spaces.Discrete(3)}),
    "pair": spaces.Tuple([spaces.Discrete(2), spaces.Box(-5, 0, (1,), np.float32)]),
}


def raw_samples(space: gym.Space) -> Any:
    """What a policy may emit: real numbers well outside [-1, 1] too."""
    rng = np.random.default_rng(1)

    def real(part: np.ndarray) -> np.ndarray:
        return (3 * rng.normal(size=part.shape)).astype(part.dtype) if part.dtype.kind == "f" else part % 3

    return tree.map_structure(real, rows_of(space, E, rng))


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("normalize, clip", [(True, False), (False, True), (True, True), (False, False)])
def test_actions_reach_the_environment_as_through_rllib(name: str, normalize: bool, clip: bool) -> None:
    space, raw = BOXES[name], raw_samples(BOXES[name])
    got = to_env_action(space, normalize=normalize, clip=clip)(raw)
    struct = get_base_struct_from_space(space)
    for e in range(E):
        expected = tree.map_structure(lambda x, e=e: x[e], raw)
        # RLlib leaves what is bounded on one side unclipped under `normalize`.
        if normalize and name != "half bounded":
            expected = unsquash_action(expected, struct)
        elif normalize or clip:
            expected = clip_action(expected, struct)
        row = tree.map_structure(lambda x, e=e: x[e], got)
        tree.map_structure(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), row, expected)


@pytest.mark.parametrize("normalize, clip", [(True, False), (False, True), (False, False)])
def test_a_teams_actions_are_each_agents_own(normalize: bool, clip: bool) -> None:
    raw = {name: raw_samples(space) for name, space in BOXES.items()}
    before = deepcopy(raw)
    given = ToEnvActions(BOXES, normalize=normalize, clip=clip)(raw)
    assert given.keys() == BOXES.keys()
    for name, space in BOXES.items():
        own = to_env_action(space, normalize=normalize, clip=clip)(raw[name])
        tree.map_structure(np.testing.assert_array_equal, given[name], own)
        assert tree.map_structure(lambda x: x.dtype, given[name]) == tree.map_structure(
            lambda x: x.dtype, own
        )
        tree.map_structure(np.testing.assert_array_equal, raw[name], before[name])
    if normalize:
        assert np.abs(given["shifted"] - given["each its own"]).max() > 1, "control: bounds of one's own"


@pytest.mark.parametrize("name", ["symmetric", "shifted", "each its own", "float64", "table", "number"])
def test_scaled_actions_are_in_their_space(name: str) -> None:
    """Bounds of float64 are kept to the last digit."""
    space, raw = BOXES[name], raw_samples(BOXES[name])
    for row in to_env_action(space, normalize=True, clip=True)(100 * raw):
        assert space.contains(np.asarray(row))


def test_control_scaling_changes_actions() -> None:
    space, raw = BOXES["shifted"], raw_samples(BOXES["shifted"])
    scaled, clipped, same = (
        to_env_action(space, normalize=n, clip=c)(raw)
        for n, c in ((True, False), (False, True), (False, False))
    )
    assert space.contains(scaled[0])
    assert space.contains(clipped[0])
    assert np.abs(scaled - clipped).max() > 0.1
    assert same is raw


REWARD = np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 0.0], [0.0, 5.0, 0.0], [3.0, 3.0, 3.0]])
ACTIVE = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)


def naive_team_reward(reward: np.ndarray, active: np.ndarray, rule: str) -> list[float]:
    found = []
    for row, acting in zip(reward.tolist(), active.tolist(), strict=True):
        counted = [r for r, a in zip(row, acting, strict=True) if a] or row
        found.append({"sum": sum(row), "mean": sum(row) / len(row), "shared": counted[0]}[rule])
    return found


@pytest.mark.parametrize(
    "rule, expected", [("shared", [1, 2, 5, 3]), ("sum", [3, 4, 5, 9]), ("mean", [1, 4 / 3, 5 / 3, 3])]
)
def test_the_teams_reward(rule: TeamReward, expected: list[float]) -> None:
    np.testing.assert_allclose(team_reward(REWARD, ACTIVE, rule), expected)
    np.testing.assert_allclose(naive_team_reward(REWARD, ACTIVE, rule), expected)
    rng = np.random.default_rng(0)
    reward, active = rng.normal(size=(50, 4)), rng.random((50, 4)) < 0.6
    if rule == "shared":
        reward[:] = reward[:, :1]
    np.testing.assert_allclose(team_reward(reward, active, rule), naive_team_reward(reward, active, rule))


def test_shared_rewards_must_be_equal_among_those_who_act() -> None:
    reward = REWARD.copy()
    reward[2, 0] = 99.0  # of one who does not act
    team_reward(reward, ACTIVE, "shared")
    reward[1, 1] = 2.5
    with pytest.raises(UnequalRewards) as caught:
        team_reward(reward, ACTIVE, "shared")
    assert caught.value.row == 1
    np.testing.assert_array_equal(caught.value.rewards, [2.0, 2.5, 0.0])
    told = caught.value.cause(["left", "right", "idle"])
    assert "{'left': 2.0, 'right': 2.5}," in told, "who did not act has no part in it"
    team_reward(reward, ACTIVE, "mean")
    close = np.full((1, 3), 1e6)
    close[0, 1] += 0.5
    team_reward(close, np.ones((1, 3), bool), "shared")  # rounding of float32 rewards is no difference


def test_unequal_rewards_are_reported_with_their_place() -> None:
    fragment = make_fragment(5, present=1.0, env_t=30, source=(2, 7))
    fragment.reward[3, 1] += 1
    with pytest.raises(EnvironmentFault, match=r"`team_reward` to `mean` or `sum`") as caught:
        rewards_of(fragment, "shared", "arena")
    fault = pickle.loads(pickle.dumps(caught.value))
    assert (fault.environment, fault.sub_env, fault.step) == ("arena", 7, 34)
    assert "np.float" not in str(fault)


def episode(name: str, length: int, cuts: tuple[int, ...] = (), seed: int = 0) -> list[JointFragment]:
    whole = make_fragment(length, seed, episode_id=name, terminated=True, present=1.0)
    edges = [0, *cuts, length]
    return [whole[a:b] for a, b in pairwise(edges)]


def total(fragments: list[JointFragment]) -> float:
    return float(sum(sum(f.reward[:, 0].tolist()) for f in fragments))


def test_returns_are_put_together_over_batches() -> None:
    a, b, c = episode("a", 9, (3, 7)), episode("b", 4, seed=1), episode("c", 8, (5,), seed=2)
    returns = TeamReturns(10, "shared", "arena")
    assert returns.summary() == {}
    for batch in ([a[0], c[0]], [a[1], b[0]], [c[1]]):
        returns.add(batch)
    # a and c were cut off: in the second batch nothing came of c, in the third nothing of a.
    assert returns.summary()["team_return_mean"] == pytest.approx(total(b))
    returns = TeamReturns(10, "shared", "arena")
    for batch in ([c[0], a[0]], [a[2], b[0], a[1], c[1]]):  # in any order of arrival
        returns.add(batch)
    values = [total(a), total(b), total(c)]
    assert returns.summary() == pytest.approx(
        {"team_return_mean": np.mean(values), "team_return_min": min(values), "team_return_max": max(values)}
    )


def test_an_episode_that_lost_a_fragment_has_no_return() -> None:
    a, b = episode("a", 9, (3, 7)), episode("b", 4, seed=1)
    returns = TeamReturns(10, "shared", "arena")
    returns.add([a[0]])
    returns.add([a[2], b[0]])
    assert returns.summary()["team_return_mean"] == pytest.approx(total(b))
    late = TeamReturns(10, "shared", "arena")
    late.add(a[1:])
    assert late.summary() == {}


def test_the_window_and_the_state() -> None:
    episodes = [episode(str(i), 3 + i, (2,), seed=i) for i in range(6)]
    returns, restored = TeamReturns(3, "sum", "arena"), TeamReturns(3, "sum", "arena")
    for fragments in episodes[:5]:
        returns.add(fragments)
    returns.add(episodes[5][:1])
    restored.set_state(pickle.loads(pickle.dumps(returns.get_state())))
    for one in (returns, restored):
        one.add(episodes[5][1:])
        last = [len(TEAM.agents) * total(fragments) for fragments in episodes[3:]]
        assert one.summary()["team_return_mean"] == pytest.approx(np.mean(last))
        assert one.summary()["team_return_min"] == pytest.approx(min(last))


def test_episode_metrics_equal_plain_sums() -> None:
    """Two sub-environments; an episode over two calls, one that ends, one that begins in a call."""
    long, short, fresh = (
        episode("long", 9, (4,)),
        episode("short", 4, seed=1),
        episode("fresh", 7, (3,), seed=2),
    )
    for fragment in [*long, *short, *fresh]:
        fragment.active["boss"][-2:] = False
    metrics = EpisodeMetrics(TEAM, 2)
    logger, logged = MetricsLogger(), []
    metrics.start(0, "long")
    metrics.start(1, "short")
    for _ in range(4):
        metrics.count_step()
    metrics.start(1, "fresh")
    assert metrics.steps.tolist() == [4, 0]
    metrics.log(logger, [long[0], short[0]], lambda *figures: logged.append(figures))
    restored = EpisodeMetrics(TEAM, 2)
    restored.set_state(pickle.loads(pickle.dumps(metrics.get_state())))
    assert restored.ids == ["long", "fresh"]
    restored.log(logger, [fresh[0], long[1]], lambda *figures: logged.append(figures))
    assert len(logged) == 2
    for figures, fragments in zip(logged, (short, long), strict=True):
        length, value, seconds, by_agent, by_module, acted = figures
        each = total(fragments)
        assert (length, value) == (sum(map(len, fragments)), pytest.approx(len(TEAM.agents) * each))
        assert seconds >= 0
        assert by_agent == pytest.approx(dict.fromkeys(TEAM.agents, each))
        assert by_module == pytest.approx({"zed": each, "boss": each, "hands": 2 * each})
        absent = len(fragments)  # `boss` missed each piece's last row, and the row after it
        assert acted == dict.fromkeys(TEAM.agents, length) | {"boss": length - 2 * absent + 1}
    results = logger.peek()
    assert results["num_episodes"] == 2
    assert results["num_env_steps_sampled"] == 4 + 4 + 5 + 3
    assert results["num_agent_steps_sampled"]["zed"] == 16
    assert results["num_module_steps_sampled"]["hands"] == 2 * 16


def test_the_teams_policies_and_their_members() -> None:
    assert TEAM.members() == {"boss": ["boss"], "hands": ["left", "right"], "zed": ["zed"]}


class Declared:
    """As much of an environment as a team reads."""

    agents, state_space = TEAM.agents, None
    observation_spaces, action_spaces = TEAM.observation_spaces, TEAM.action_spaces


def test_a_team_reads_the_environment_and_checks_the_spaces() -> None:
    env: Any = Declared()
    assert Team.of(env).module_of == {a: a for a in TEAM.agents}
    assert Team.of(env, lambda agent, episode, **_: TEAM.module_of[agent]) == TEAM
    with pytest.raises(ValueError, match=r"'zed' and 'boss' share the policy 'p'.*policies of their own"):
        Team.of(env, lambda agent, episode, **_: "p" if agent in ("zed", "boss") else agent)
