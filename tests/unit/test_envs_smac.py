"""SMAC's contract, kept against a stand-in: legal actions, deaths, time limits, crashes."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import fake_starcraft
import numpy as np
import pytest
from fake_starcraft import ACTIONS, LIMIT, STOP, StarCraft2Env
from pettingzoo.test import parallel_api_test

from rllib_haml.envs import smac
from rllib_haml.envs.registry import resolve_env
from rllib_haml.sampling.make_vector import make_vector_team_env

TEAM = ["ally_0", "ally_1", "ally_2"]


@pytest.fixture(autouse=True)
def starcraft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs the stand-in under the names of both packages."""
    monkeypatch.setattr(StarCraft2Env, "made", [])
    modules = ("smac", "smac.env", "smacv2", "smacv2.env", "smacv2.env.starcraft2")
    for name in (*modules, "smacv2.env.starcraft2.wrapper"):
        module: Any = ModuleType(name)
        module.StarCraft2Env = StarCraft2Env
        module.StarCraftCapabilityEnvWrapper = fake_starcraft.StarCraftCapabilityEnvWrapper
        monkeypatch.setitem(sys.modules, name, module)


def play(env: smac.SMAC) -> list[Any]:
    """One battle of units that stand still."""
    env.reset()
    seen = []
    while env.agents:
        seen.append(env.step(dict.fromkeys(env.agents, STOP)))
    return seen


@pytest.mark.parametrize("script", [{}, {"deaths": {1: 2}}, {"won": 3}, {"deaths": {0: 1, 1: 2, 2: 4}}])
def test_pettingzoos_own_check(script: dict[str, Any]) -> None:
    class Still(smac.SMAC):
        """PettingZoo's check draws actions without the masks."""

        def step(self, actions: dict[str, Any]) -> Any:
            return super().step(dict.fromkeys(actions, STOP))

    parallel_api_test(Still("still", lambda seed: StarCraft2Env(seed=seed, **script)), 30)


def test_spaces_masks_and_state() -> None:
    env = smac.make_smac("3m")
    obs, _ = env.reset()
    assert env.agents == env.possible_agents == list(obs) == TEAM
    assert all(obs[agent] in env.observation_space(agent) for agent in obs)
    assert obs["ally_2"]["observations"].tolist() == [2, 0, 1]
    assert obs["ally_0"]["action_mask"].tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
    assert env.action_space("ally_0").n == ACTIONS
    assert env.state() in env.state_space


def test_the_dead_leave_and_the_game_gets_their_no_op() -> None:
    env = smac.make_smac(deaths={1: 2}, won=4)
    one, two, three, four = play(env)
    assert not any(one[2].values())
    assert two[2] == {"ally_0": False, "ally_1": True, "ally_2": False}
    assert not two[0]["ally_1"]["observations"].any()
    assert list(three[0]) == list(three[1]) == ["ally_0", "ally_2"]
    assert [actions[1] for actions in StarCraft2Env.made[0].taken] == [STOP, STOP, 0, 0]
    assert four[1] == {"ally_0": 10.5, "ally_2": 10.5}


def test_a_victory_is_terminal() -> None:
    last = play(smac.make_smac(won=3))[-1]
    assert set(last[2].values()) == {True}
    assert set(last[3].values()) == {False}
    assert all(info == {"battle_won": True, "outcome": {"win": 1.0}} for info in last[4].values())


@pytest.mark.parametrize("script", [{"won": LIMIT}, {"deaths": {0: 1, 1: 2, 2: LIMIT}}])
def test_a_battle_that_is_decided_in_its_last_step_is_terminal(script: dict[str, Any]) -> None:
    last = play(smac.make_smac(**script))[-1]
    assert all(last[2].values())
    assert not any(last[3].values())
    assert {info["outcome"]["win"] for info in last[4].values()} == {float("won" in script)}


def test_a_time_limit_truncates_those_who_are_left() -> None:
    seen = play(smac.make_smac(deaths={1: 2, 2: LIMIT}))
    assert len(seen) == LIMIT
    assert seen[-1][2] == {"ally_0": False, "ally_2": True}
    assert seen[-1][3] == {"ally_0": True, "ally_2": False}
    assert not any(info["battle_won"] for info in seen[-1][4].values())
    told = [[info.get("outcome") for info in step[4].values()] for step in seen]
    assert told == [[None] * len(step[4]) for step in seen[:-1]] + [[{"win": 0.0}] * 2]


def test_a_crash_is_no_terminal_state_and_the_last_observation_stands() -> None:
    env = smac.make_smac(crash=3, deaths={1: 2})
    _, before, crashed = play(env)
    assert crashed[2] == {"ally_0": False, "ally_2": False}
    assert crashed[3] == {"ally_0": True, "ally_2": True}
    np.testing.assert_array_equal(crashed[0]["ally_2"]["observations"], before[0]["ally_2"]["observations"])
    assert set(crashed[1].values()) == {0.0}
    assert not any("outcome" in info for info in crashed[4].values())
    env.reset()  # the game has been restarted
    assert env.agents == TEAM


def test_an_illegal_action_is_an_error() -> None:
    env = smac.make_smac()
    env.reset()
    with pytest.raises(ValueError, match=r"'ally_1' cannot do action 0.*\[1, 2, 3, 4, 5, 6\].*disable_env"):
        env.step({"ally_0": STOP, "ally_1": 0, "ally_2": STOP})


def test_a_seed_reaches_the_game_when_it_is_made() -> None:
    env = smac.make_smac()
    env.reset(seed=7)
    env.reset()
    first, second = StarCraft2Env.made
    assert first.closed
    assert first.battles == 0
    assert second.given_seed == 7
    assert second.battles == 2


def test_the_sampler_sees_the_team() -> None:
    vec = make_vector_team_env(lambda: resolve_env("smac")({"deaths": {1: 2}}), 2)
    assert not vec.has_state
    assert vec.agents == tuple(TEAM)
    out = vec.reset([0, 1], [1, 2])
    np.testing.assert_array_equal(out.state, [[0, 1], [0, 2]])
    for step in range(1, LIMIT + 1):
        out = vec.step({agent: np.full(2, STOP) for agent in TEAM})
        assert out.active.tolist() == [[True, step < 2, True]] * 2
        assert out.truncated.all() == (step == LIMIT)
        assert [out.outcome_of(e) for e in (0, 1)] == [{"win": 0.0} if step == LIMIT else {}] * 2
        assert out.action_mask["ally_1"].all() == (step >= 2)


def test_smacv2_draws_its_teams_as_its_authors_do() -> None:
    for _ in range(2):
        env = smac.make_smacv2("zerg", units=3, enemies=2, conic_fov=True)
        env.reset(seed=3)  # what it was made with is not written into
    game: Any = StarCraft2Env.made[-1]
    assert game.map_name == "10gen_zerg"
    assert game.capability_config["n_enemies"] == 2
    assert game.capability_config["team_gen"]["unit_types"] == ["zergling", "baneling", "hydralisk"]
    assert game.capability_config["team_gen"]["exception_unit_types"] == ["baneling"]
    assert env.agents == TEAM
    own = {"n_units": 3, "n_enemies": 3, "team_gen": {"dist_type": "fixed"}, "start_positions": {}}
    smac.make_smacv2(capability_config=own)
    assert StarCraft2Env.made[-1].capability_config["team_gen"]["dist_type"] == "fixed"
    assert own["start_positions"] == {}


def test_an_unknown_race() -> None:
    with pytest.raises(ValueError, match="'terrans'; expected one of: terran, protoss, zerg"):
        smac.make_smacv2("terrans")


@pytest.mark.parametrize("make, package", [(smac.make_smac, "smac"), (smac.make_smacv2, "smacv2")])
def test_without_it_it_says_what_to_type(make: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "smac.env", None)
    monkeypatch.setitem(sys.modules, "smacv2.env.starcraft2.wrapper", None)
    words = rf"pip install git\+https://github.com/oxwhirl/{package}.git.*another project.*SC2PATH"
    with pytest.raises(ModuleNotFoundError, match=words):
        make()
