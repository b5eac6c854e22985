"""SMAX: JaxMARL's battles as they are, in arrays, with deaths, time limits and exact continuation."""

from __future__ import annotations

import pickle
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from ray.rllib.utils.pre_checks.env import check_multiagent_environments

from rllib_haml.envs import extras, smax
from rllib_haml.envs.registry import resolve_env
from rllib_haml.sampling.make_vector import make_vector_team_env

pytestmark = pytest.mark.skipif(find_spec("jaxmarl") is None, reason="needs rllib-haml[smax]")
RIGHT, STOP = 1, 4


def battles(num_envs: int = 2, **config: Any) -> smax.SMAX:
    vec = make_vector_team_env(lambda: resolve_env("smax")({"scenario": "3m", **config}), num_envs)
    assert isinstance(vec, smax.SMAX)
    return vec


def legal_actions(out: Any, draws: np.random.Generator) -> dict[Any, np.ndarray]:
    return {a: np.array([draws.choice(np.flatnonzero(row)) for row in m]) for a, m in out.action_mask.items()}


def arrays(out: Any) -> list[np.ndarray]:
    """Everything that a step tells, copied."""
    seen = [x for a in out.obs for x in (*out.obs[a].values(), out.action_mask[a])]
    rest = [out.active, out.reward, out.terminated, out.truncated, out.state]
    return [np.array(x) for x in (*seen, *rest)]


def roll(vec: smax.SMAX, out: Any, steps: int, seed: int = 0) -> list[list[np.ndarray]]:
    draws, seen = np.random.default_rng(seed), [arrays(out)]
    for _ in range(steps):
        out = vec.step(legal_actions(out, draws))
        done = np.flatnonzero(out.terminated | out.truncated).tolist()
        seen.append(arrays(out))
        if done:
            out = vec.reset(done, [None] * len(done))
            seen.append(arrays(out))
    return seen


def same(one: list[list[np.ndarray]], other: list[list[np.ndarray]]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(x, y)
        for step, twin in zip(one, other, strict=True)
        for x, y in zip(step, twin, strict=True)
    )


def test_every_row_is_jaxmarls_own_battle() -> None:
    """The oracle steps JaxMARL's environment with the keys that a row with this seed uses."""
    import jax

    vec, seeds = battles(), [5, 6]
    game = vec._rules.game
    out, draws, ends = vec.reset([0, 1], seeds), np.random.default_rng(1), 0
    keys = [jax.random.PRNGKey(seed) for seed in seeds]
    states: list[Any] = [None, None]
    for e in (0, 1):
        keys[e], draw = jax.random.split(keys[e])
        states[e] = game.reset(draw)[1]
    for _ in range(45):
        actions = legal_actions(out, draws)
        out = vec.step(actions)
        for e in (0, 1):
            keys[e], draw = jax.random.split(keys[e])
            chosen = {agent: batch[e] for agent, batch in actions.items()}
            obs, states[e], rewards, dones, _ = game.step_env(draw, states[e], chosen)
            masks = game.get_avail_actions(states[e])
            for i, agent in enumerate(vec.agents):
                np.testing.assert_allclose(out.obs[agent]["observations"][e], obs[agent], atol=1e-6)
                np.testing.assert_allclose(out.reward[e, i], rewards[agent], atol=1e-6)
                assert out.active[e, i] == ~dones[agent]
                if out.active[e, i]:
                    np.testing.assert_array_equal(out.action_mask[agent][e], masks[agent])
            assert (out.terminated[e] or out.truncated[e]) == bool(dones["__all__"])
            living = np.asarray(states[e].state.unit_alive)
            won = living[: game.num_allies].any() and not living[game.num_allies :].any()
            assert out.outcome_of(e) == ({"win": float(won)} if dones["__all__"] else {})
            if dones["__all__"]:
                ends += 1
                out = vec.reset([e], [None])
                keys[e], draw = jax.random.split(keys[e])
                states[e] = game.reset(draw)[1]
    assert ends >= 2


@pytest.mark.parametrize(
    "rules, win",
    [({"enemy_shoots": False}, 1.0), ({}, 0.0), ({"enemy_shoots": False, "max_steps": 5}, 0.0)],
    ids=["won", "lost", "out of time"],
)
def test_a_battle_is_won_where_jaxmarls_log_says_so(rules: dict[str, Any], win: float) -> None:
    """`SMAXLogWrapper` takes an episode for won whose last reward is 1 or more, the bonus for a win."""
    vec = battles(**rules)
    out, told = vec.reset([0, 1], [0, 1]), {}
    for _ in range(40):
        aims = {a: m[:, STOP + 1 :] for a, m in out.action_mask.items()}
        out = vec.step({a: np.where(m.any(-1), STOP + 1 + m.argmax(-1), RIGHT) for a, m in aims.items()})
        for e in np.flatnonzero(out.terminated | out.truncated).tolist():
            told.setdefault(e, (out.outcome_of(e), float(out.reward[e, 0] >= 1.0)))
    assert told == dict.fromkeys([0, 1], ({"win": win}, win))


def test_a_battle_that_nobody_survives_is_no_win() -> None:
    vec = battles()
    vec.reset([0, 1], [0, 1])
    seen = vec._battles.seen
    over = {"terminated": np.ones(2, bool), "alive": np.array([[False] * 3, [False, True, False]])}
    vec._battles = vec._battles._replace(seen=seen._replace(**over))
    out = vec.reset([], [])
    assert [out.outcome_of(e) for e in (0, 1)] == [{"win": 0.0}, {"win": 1.0}]


def test_what_is_seen_lies_in_its_space() -> None:
    vec = battles()
    out, draws, died = vec.reset([0, 1], [0, 1]), np.random.default_rng(2), 0
    assert vec.agents == ("ally_0", "ally_1", "ally_2")
    for _ in range(60):
        out = vec.step(legal_actions(out, draws))
        assert vec.state_space is not None
        for e in (0, 1):
            assert out.state[e] in vec.state_space
            for i, agent in enumerate(vec.agents):
                obs = {name: rows[e] for name, rows in out.obs[agent].items()}
                assert obs in vec.observation_spaces[agent]
                assert (out.reward[e] == out.reward[e, 0]).all()
                if out.active[e, i]:
                    np.testing.assert_array_equal(obs["action_mask"], out.action_mask[agent][e])
                else:
                    died += 1
                    assert not obs["observations"].any()
                    assert not obs["action_mask"].any()
                    assert out.action_mask[agent][e].all()
        done = np.flatnonzero(out.terminated | out.truncated).tolist()
        out = vec.reset(done, [None] * len(done))
    assert died


def test_a_death_is_not_the_end_and_the_team_is_paid_on() -> None:
    vec = battles()
    draws, out = np.random.default_rng(0), vec.reset([0, 1], [0, 1])
    paid_dead = 0.0
    for _ in range(40):
        out = vec.step(legal_actions(out, draws))
        running = ~(out.terminated | out.truncated)
        assert out.active[running].any(-1).all()
        paid_dead += out.reward[running[:, None] & ~out.active].sum()
        done = np.flatnonzero(~running).tolist()
        assert not (out.terminated & out.truncated).any()
        out = vec.reset(done, [None] * len(done))
    assert paid_dead > 0


def test_a_time_limit_truncates_and_ended_rows_wait() -> None:
    vec = battles(max_steps=2)
    vec.reset([0, 1], [0, 1])
    stop = {agent: np.full(2, STOP) for agent in vec.agents}
    assert not vec.step(stop).truncated.any()
    last = vec.step(stop)
    assert last.truncated.all()
    assert not last.terminated.any()
    assert last.active.all()
    waits = vec.step(stop)
    assert same([arrays(waits)], [arrays(last)])
    again = vec.reset([1], [3])
    assert again.truncated.tolist() == [True, False]
    np.testing.assert_array_equal(again.state[0], last.state[0])
    assert not np.array_equal(again.state[1], last.state[1])


def test_seeds_reproduce_and_the_unseeded_differ() -> None:
    one, other = battles(), battles()
    first = roll(one, one.reset([0, 1], [7, 8]), 40)
    assert same(first, roll(other, other.reset([0, 1], [7, 8]), 40))
    unseeded = battles().reset([0, 1], [None, None]).state
    assert not np.array_equal(unseeded[0], unseeded[1])
    assert not np.array_equal(unseeded, battles().reset([0, 1], [None, None]).state)


def test_one_row_alone_plays_as_it_does_beside_another() -> None:
    pair, alone = battles(2), battles(1)
    out, single = pair.reset([0, 1], [3, 4]), alone.reset([0], [4])
    draws = np.random.default_rng(0)
    for _ in range(12):
        actions = legal_actions(out, draws)
        out, single = pair.step(actions), alone.step({a: x[1:] for a, x in actions.items()})
        for agent in pair.agents:
            seen = [x.obs[agent]["observations"] for x in (out, single)]
            np.testing.assert_allclose(seen[0][1], seen[1][0], atol=1e-6)
        np.testing.assert_array_equal(out.active[1], single.active[0])


@pytest.mark.parametrize("cut", [0, 9, 25])
def test_restored_state_continues_bit_for_bit(cut: int) -> None:
    vec, other = battles(), battles()
    roll(vec, vec.reset([0, 1], [1, 2]), cut)
    state = pickle.loads(pickle.dumps(vec.get_state()))
    assert all(type(leaf) is np.ndarray for leaf in state)
    now = other.set_state(state)
    expected = roll(vec, vec.reset([], []), 30)
    assert same(roll(other, now, 30), expected)
    # The state is a copy: it can be set again after the environment has moved on.
    assert same(roll(other, other.set_state(state), 30), expected)


def test_a_state_of_other_battles_is_refused() -> None:
    state = battles(1).get_state()
    with pytest.raises(ValueError, match="have shapes"):
        battles(2).set_state(state)


def test_it_is_an_rllib_environment_too() -> None:
    env: Any = resolve_env("smax")({"scenario": "3m"})
    check_multiagent_environments(env)
    obs, infos = env.reset(seed=4)
    alone, left = battles(1), set()
    np.testing.assert_array_equal(env.state(), alone.reset([0], [4]).state[0])
    assert list(obs) == list(infos) == env.agents == env.possible_agents
    draws, flags = np.random.default_rng(0), {"__all__": False}
    while not flags["__all__"]:
        playing = [agent for agent in obs if agent not in left]
        masks = {agent: np.flatnonzero(obs[agent]["action_mask"]) for agent in playing}
        obs, rewards, flags, truncateds, infos = env.step({a: draws.choice(m) for a, m in masks.items()})
        assert list(obs) == list(rewards) == playing
        assert all(obs[agent] in env.observation_spaces[agent] for agent in obs)
        np.testing.assert_array_equal(infos[playing[0]]["state"], env.state())
        left |= {agent for agent, gone in flags.items() if gone and agent != "__all__"}
        told = {"win": float(len(left) < len(env.possible_agents))} if flags["__all__"] else None
        assert all(info.get("outcome") == told for info in infos.values())
        assert truncateds == {"__all__": False}
    assert left


@pytest.mark.parametrize(
    "config, words",
    [
        ({"scenario": "3mm"}, "Did you mean '3m'.*smacv2_5_units"),
        ({"action_type": "continuous"}, "discrete actions: leave it out"),
    ],
)
def test_wrong_arguments(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_env("smax")(config)


def test_smacv2_scenarios_draw_their_teams() -> None:
    vec = smax.SMAX(1, "smacv2_5_units")
    assert vec._rules.game.smacv2_unit_type_generation
    assert len(vec.agents) == 5
    assert vec.action_spaces["ally_0"].n == 10


def test_without_the_extra_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "rllib-haml\[smax\]"'):
        smax.make("8m")
