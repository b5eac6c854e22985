"""The job shop: schedules that are known, unequal machines, breakdowns, exact continuation."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from rllib_haml.envs.job_shop import PLANTS, JobShop, make
from rllib_haml.sampling.make_vector import make_vector_team_env

Rule = Callable[[JobShop, str, np.ndarray], int]
# Each machine's jobs in the order of a schedule that no other beats.
BEST = {
    "drill": [0, 4],
    "mill": [2, 4, 0, 5],
    "furnace": [1, 5, 3, 2, 0],
    "paint": [4, 1, 2],
    "saw": [2, 3, 5],
}


def play(env: JobShop, rule: Rule, seed: int = 0) -> float:
    """The time at which the last job is finished; every step is checked on the way."""
    (obs, infos), earned = env.reset(seed=seed), 0.0
    while True:
        assert all(obs[m] in env.observation_spaces[m] for m in obs)
        assert all(infos[m]["state"] in env.state_space for m in obs)
        actions = {m: rule(env, m, seen["action_mask"]) for m, seen in obs.items()}
        obs, rewards, terminateds, truncateds, infos = env.step(actions)
        assert list(rewards) == list(actions)
        assert len(set(rewards.values())) == 1
        assert not any(truncateds.values())
        earned += next(iter(rewards.values()))
        if terminateds["__all__"]:
            assert earned == -env.time
            return env.time


def at_random(seed: int, waits: bool = True) -> Rule:
    draws = np.random.default_rng(seed)
    return lambda env, machine, mask: int(draws.choice(np.flatnonzero(mask if waits else mask[:-1])))


def shortest_first(env: JobShop, machine: str, mask: np.ndarray) -> int:
    """The dispatching rule SPT."""
    jobs = env._jobs[machine]
    return min(np.flatnonzero(mask[:-1]), key=lambda i: dict(env.routes[jobs[i]])[machine])


def in_order(order: dict[str, Sequence[int]]) -> Rule:
    """Does each machine's jobs in this order and waits for the next one."""

    def rule(env: JobShop, machine: str, mask: np.ndarray) -> int:
        job = next(j for j in order[machine] if env._lead(j, machine) is not None)
        action = env._jobs[machine].index(job)
        return action if mask[action] else len(mask) - 1

    return rule


def best_time(routes: Sequence[Any]) -> float:
    """The shortest schedule without breakdowns, by an integer program that does not use the environment."""
    operations = [(j, k, m, t) for j, route in enumerate(routes) for k, (m, t) in enumerate(route)]
    number = {(j, k): i for i, (j, k, _, _) in enumerate(operations)}
    pairs = [(a, b) for a, x in enumerate(operations) for b, y in enumerate(operations[:a]) if x[2] == y[2]]
    last, late = len(operations), float(sum(x[3] for x in operations))
    rows, least = [], []

    def demand(at_least: float, **terms: Any) -> None:
        row = np.zeros(last + 1 + len(pairs))
        for column, factor in terms["of"]:
            row[column] = factor
        rows.append(row)
        least.append(at_least)

    for i, (j, k, _, t) in enumerate(operations):
        demand(t, of=[(number.get((j, k + 1), last), 1), (i, -1)])
    for p, (a, b) in enumerate(pairs, last + 1):  # the binary variable says which of the two is first
        demand(operations[a][3], of=[(b, 1), (a, -1), (p, late)])
        demand(operations[b][3] - late, of=[(a, 1), (b, -1), (p, -late)])
    binary = np.r_[np.zeros(last + 1), np.ones(len(pairs))]
    solved = milp(
        np.eye(1, len(binary), last)[0],
        constraints=LinearConstraint(np.array(rows), np.array(least), np.inf),
        integrality=binary,
        bounds=Bounds(np.zeros(len(binary)), np.where(binary, 1.0, late)),
    )
    assert solved.success
    return float(solved.fun)


def test_the_best_schedule_is_an_independent_solvers_and_can_be_played() -> None:
    assert best_time(PLANTS["workshop"]) == pytest.approx(28)
    env = make(breakdown=0.0)
    assert env.bound == 27
    assert play(env, in_order(BEST)) == 28


def test_rules_that_never_wait_are_worse() -> None:
    env = make(breakdown=0.0)
    assert play(env, shortest_first) == 37
    assert min(play(env, at_random(seed, waits=False)) for seed in range(300)) == 33


def test_the_classical_benchmark() -> None:
    """Known of ft06: SPT makes 88, and no schedule less than 55."""
    env = make("ft06", breakdown=0.0)
    assert play(env, shortest_first) == 88
    assert min(play(env, at_random(seed)) for seed in range(50)) >= 55


def test_machines_are_unequal() -> None:
    env = make()
    assert env.possible_agents == ["drill", "mill", "furnace", "paint", "saw"]
    assert [env.action_spaces[m].n for m in env.possible_agents] == [3, 5, 6, 4, 4]
    widths = [env.observation_spaces[m]["observations"].shape for m in env.possible_agents]
    assert widths == [(6,), (12,), (15,), (9,), (9,)]


def test_breakdowns_cost_time_and_never_less_than_the_best_schedule() -> None:
    smooth, rough = make(breakdown=0.0), make(breakdown=0.5, repair=5)
    times = [play(rough, in_order(BEST), seed) for seed in range(40)]
    assert min(times) >= 28
    assert np.mean(times) > play(smooth, in_order(BEST)) + 5


def test_a_machine_under_repair_has_no_choice() -> None:
    env = JobShop([[("a", 2)], [("a", 3)], [("b", 1)], [("b", 1)]], breakdown=0.999, repair=4)
    obs, _ = env.reset(seed=0)
    assert list(obs) == ["a", "b"]
    obs, rewards, *_ = env.step({"a": 0, "b": 0})
    assert env.time == 5  # b was finished at 1 and is whole again at 5; a not before 6
    assert rewards == {"a": -5.0, "b": -5.0}
    assert list(obs) == env.agents == ["b"]


def test_waiting_is_legal_only_where_it_can_help() -> None:
    env = JobShop([[("a", 1)], [("b", 5), ("a", 1)], [("b", 1)], [("a", 1)]])
    obs, _ = env.reset()
    assert obs["a"]["action_mask"].tolist() == [1, 0, 1, 0]  # nothing is under way
    obs, *_ = env.step({"a": 0, "b": 0})
    assert obs["a"]["action_mask"].tolist() == [0, 0, 1, 1]  # job 1 is to come
    obs, *_ = env.step({"a": 3})
    assert env.time == 5
    assert obs["a"]["action_mask"].tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match=r"'a' cannot do action 3; its action_mask allows \[1, 2\]"):
        env.step({"a": 3, "b": 1})


def test_seeds_reproduce() -> None:
    env = make(breakdown=0.3)
    times = [[play(env, in_order(BEST), seed) for seed in range(10)] for _ in range(2)]
    assert times[0] == times[1]
    assert len(set(times[0])) > 1


def roll(env: JobShop, rule: Rule, steps: int) -> list[bytes]:
    """What is told in each step, episode after episode."""
    seen = []
    for _ in range(steps):
        masks = {m: env._mask(m) for m in env.agents}
        obs, rewards, terminateds, _, _ = env.step({m: rule(env, m, mask) for m, mask in masks.items()})
        arrays = {m: [x.tolist() for x in obs[m].values()] for m in obs}
        seen.append(pickle.dumps((arrays, rewards, terminateds, env.state().tolist(), env.time)))
        if terminateds["__all__"]:
            env.reset()
    return seen


@pytest.mark.parametrize("cut", [0, 7, 30])
def test_restored_state_continues_bit_for_bit(cut: int) -> None:
    env, other = make(breakdown=0.3), make(breakdown=0.3)
    env.reset(seed=3)
    roll(env, at_random(0), cut)
    state = pickle.loads(pickle.dumps(env.get_state()))
    other.set_state(state)
    expected = roll(env, at_random(1), 60)
    assert roll(other, at_random(1), 60) == expected
    # The state is a copy: it can be set again after the environment has moved on.
    other.set_state(state)
    assert roll(other, at_random(1), 60) == expected


def test_the_fast_sampler_sees_who_has_a_choice() -> None:
    vec = make_vector_team_env(make, 2)
    assert vec.has_state
    out = vec.reset([0, 1], [0, 1])
    assert out.active.tolist() == [[True, False, True, True, True]] * 2
    assert out.state.shape == (2, 3 * 6 + 2 * 5)
    assert not out.obs["mill"]["observations"].any()
    assert out.action_mask["mill"].all()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"plant": "workshp"}, "Did you mean 'workshop'"),
        ({"plant": []}, "a plant is a list of jobs"),
        ({"plant": [[["saw", 0]]]}, "duration > 0"),
        ({"plant": [["saw", 3]]}, "a job a list of operations"),
        ({"breakdown": 1.0}, "0 <= breakdown < 1"),
        ({"repair": 0}, "repair >= 1"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(**arguments)


def test_own_plants() -> None:
    env = make(plant=[[["saw", 3], ["mill", 2]], [["mill", 4]]], breakdown=0.0)
    assert env.possible_agents == ["saw", "mill"]
    assert play(env, shortest_first) == 6
