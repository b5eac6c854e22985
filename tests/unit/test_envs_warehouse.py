"""Warehouse robots and foragers: one reward, honest ends, the same episodes from the same seed."""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from pettingzoo.test import parallel_api_test

from rllib_haml.envs import extras, warehouse
from rllib_haml.envs.warehouse import make_lbf, make_rware
from rllib_haml.sampling.make_vector import make_vector_team_env

pytestmark = pytest.mark.skipif(
    find_spec("rware") is None or find_spec("lbforaging") is None, reason="needs rllib-haml[warehouse]"
)
KINDS = pytest.mark.parametrize("make", [make_rware, make_lbf])
FORWARD, LOAD = 1, 5


def roll(env: Any, steps: int, seed: int = 0) -> list[bytes]:
    """What is told in each step of random play, episode after episode."""
    draws, seen = np.random.default_rng(seed), []
    for _ in range(steps):
        actions = {a: int(draws.integers(env.action_space(a).n)) for a in env.possible_agents}
        obs, *rest, _ = env.step(actions)
        seen.append(pickle.dumps(({a: o.tolist() for a, o in obs.items()}, *rest)))
        if not env.agents:
            obs, _ = env.reset()
            seen.append(pickle.dumps({a: o.tolist() for a, o in obs.items()}))
    return seen


@KINDS
def test_pettingzoos_own_check(make: Any) -> None:
    parallel_api_test(make(), 120)


@KINDS
def test_observations_lie_in_their_spaces(make: Any) -> None:
    env = make()
    obs, _ = env.reset(seed=0)
    for _ in range(60):
        assert list(obs) == env.possible_agents
        assert all(obs[a] in env.observation_space(a) for a in obs)
        obs = env.step({a: env.action_space(a).sample() for a in obs})[0]
        if not env.agents:
            obs, _ = env.reset()


@KINDS
def test_seeds_reproduce(make: Any) -> None:
    def episodes(seed: int) -> list[bytes]:
        env = make()
        env.reset(seed=seed)
        return roll(env, 80)

    assert episodes(1) == episodes(1)
    assert episodes(1) != episodes(2)


@KINDS
@pytest.mark.parametrize("cut", [0, 13, 50])  # 50: at the end of an episode of foraging
def test_restored_state_continues_bit_for_bit(make: Any, cut: int) -> None:
    env, other = make(), make()
    env.reset(seed=3)
    roll(env, cut)
    state = pickle.loads(pickle.dumps(env.get_state()))
    other.set_state(state)
    expected = roll(env, 120, seed=1)
    assert roll(other, 120, seed=1) == expected
    # The state is a copy: it can be set again after the environment has moved on.
    other.set_state(state)
    assert roll(other, 120, seed=1) == expected


@KINDS
def test_a_time_limit_truncates(make: Any) -> None:
    limit = {"max_steps": 4} if make is make_rware else {"max_episode_steps": 4}
    vec = make_vector_team_env(lambda: make(**limit), 2)
    vec.reset([0, 1], [0, 1])
    for step in range(1, 5):
        out = vec.step({agent: np.zeros(2, int) for agent in vec.agents})
        assert out.truncated.all() == (step == 4)
        assert not out.terminated.any()
    assert out.active.all()


def test_inactivity_terminates() -> None:
    env = make_rware(max_inactivity_steps=3)
    env.reset(seed=0)
    ends = [env.step(dict.fromkeys(env.possible_agents, 0))[2:4] for _ in range(3)]
    assert [set(terminations.values()) for terminations, _ in ends] == [{False}, {False}, {True}]
    assert not any(ends[-1][1].values())


def test_a_delivery_pays_everyone_once() -> None:
    env = make_rware()
    env.reset(seed=0)
    game, (x, y) = env.game, env.game.goals[0]
    robot, other = game.agents
    robot.carrying_shelf = game.request_queue[0]
    robot.dir = next(d for d in type(robot.dir) if d.name == "DOWN")
    for thing in (robot, robot.carrying_shelf):
        thing.x, thing.y = x, y - 1
    other.x = other.y = 0
    game._recalc_grid()
    rewards = env.step({"agent_0": FORWARD, "agent_1": 0})[1]
    assert rewards == {"agent_0": 1.0, "agent_1": 1.0}


def test_foragers_share_what_they_lift_and_the_end_is_terminal() -> None:
    env = make_lbf()
    env.reset(seed=0)
    earned = 0.0
    while env.agents:
        row, column = np.argwhere(env.game.field)[0]
        for player, side in zip(env.game.players, (-1, 1), strict=True):
            player.position = (row, column + side)
        env.game._gen_valid_moves()
        _, rewards, terminations, truncations, _ = env.step(dict.fromkeys(env.agents, LOAD))
        assert len(set(rewards.values())) == 1
        earned += rewards["agent_0"]
    assert earned == pytest.approx(1.0)
    assert all(terminations.values())
    assert not any(truncations.values())


def test_foraging_does_not_depend_on_memory_addresses() -> None:
    """The game goes through sets of players, whose order is that of their hashes."""
    players = make_lbf("8x8-9p-2f").game.players
    assert [player.number for player in set(reversed(players))] == list(range(9))


@pytest.mark.parametrize("task", ["tiny-2ag", "rware-tiny-2ag", "rware-tiny-2ag-v2"])
def test_names(task: str) -> None:
    assert make_rware(task).game.spec.id == "rware-tiny-2ag-v2"


@pytest.mark.parametrize(
    "make, task, near", [(make_rware, "tinny-2ag", "'tiny-2ag'"), (make_lbf, "8x8-2p-2f-cop", "2f-coop'")]
)
def test_unknown_tasks(make: Any, task: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown task.*Did you mean.*{near}"):
        make(task)


@KINDS
def test_without_the_extra_it_says_what_to_type(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "rllib-haml\[warehouse\]"'):
        make()


def test_both_have_a_state_for_the_sampler() -> None:
    for make in (make_rware, make_lbf):
        vec = make_vector_team_env(make, 1)
        assert vec.has_state
        assert vec.state_space is None
        assert isinstance(vec._teams[0].env, warehouse.GridTeam)
