"""What policies remember while they play, against plain loops over sub-environments."""

from __future__ import annotations

from typing import Any

import numpy as np

from rllib_haml.sampling.actor_states import ActorStates

E, AGENTS = 3, ("zed", "left", "boss")
INITIAL = {"boss": {"h": np.full(2, 7.0)}, "left": {"h": np.zeros(2), "c": np.ones(1)}}


def test_states_move_with_those_who_act_and_begin_anew_with_episodes() -> None:
    rng = np.random.default_rng(0)
    states = ActorStates(INITIAL, AGENTS, E)
    now = {(e, a, p): x for e in range(E) for a, s in INITIAL.items() for p, x in s.items()}
    before = dict(now)
    for t in range(12):
        if t % 4 == 0:
            states.begin_fragments()
            before = dict(now)
        after = {a: {p: rng.normal(size=(E, len(x))) for p, x in s.items()} for a, s in INITIAL.items()}
        active = rng.random((E, 3)) < 0.6
        states.advance(after, active)
        for e, a, p in now:
            if active[e, AGENTS.index(a)]:
                now[e, a, p] = after[a][p][e]
        assert_equal(states, now, before)
        if t in (2, 5, 6):
            states.restart([0, 2])
            for e, a, p in now:
                if e != 1:
                    now[e, a, p] = before[e, a, p] = INITIAL[a][p]
            assert_equal(states, now, before)


def assert_equal(states: ActorStates, now: dict[Any, Any], before: dict[Any, Any]) -> None:
    for e, a, p in now:
        np.testing.assert_array_equal(states.now[a][p][e], now[e, a, p])
        np.testing.assert_array_equal(states.before_fragment(e)[a][p], before[e, a, p])


def test_a_fragment_owns_its_state() -> None:
    states = ActorStates(INITIAL, AGENTS, E)
    given = states.before_fragment(1)
    given["boss"]["h"][:] = -1
    np.testing.assert_array_equal(states.before_fragment(1)["boss"]["h"], [7.0, 7.0])


def test_a_team_without_memory_has_none() -> None:
    states = ActorStates({}, AGENTS, E)
    states.begin_fragments()
    states.advance({}, np.ones((E, 3), bool))
    states.restart([0])
    assert states.now == states.before_fragment(0) == {}
