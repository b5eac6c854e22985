"""Fragments cut from the recorder equal a plain list of what was seen and done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tree
from fragments import TEAM, rows_of

from rllib_haml.modules.team import TeamAction
from rllib_haml.sampling.recorder import Recorder
from rllib_haml.sampling.vector_env import TeamStep

E, T = 3, 8
ENDS = {(2, 0), (4, 2), (5, 0)}  # (step, sub-environment) after which an episode ends
ABOUT = {"truncated": False, "episode_id": "x", "env_t": 0, "source": (0, 0), "weights_seq_no": 0}


class Made:
    """Random steps and actions, kept in lists; one environment's buffers are reused, as real ones are."""

    def __init__(self, seed: int, masks_from: int = 0, state: bool = True):
        self.rng, self.masks_from, self.has_state = np.random.default_rng(seed), masks_from, state
        self.count = 0

    def step(self) -> TeamStep:
        obs = {a: rows_of(TEAM.observation_spaces[a], E, self.rng) for a in TEAM.agents}
        given = {"right": self.masks_from, "boss": self.masks_from, "left": self.masks_from + 2}
        masks = {a: self.rng.random((E, 3)) < 0.5 for a, start in given.items() if self.count >= start}
        self.count += 1
        return TeamStep(
            obs=obs,
            active=self.rng.random((E, 4)) < 0.7,
            reward=self.rng.normal(size=(E, 4)),
            terminated=np.zeros(E, bool),
            truncated=np.zeros(E, bool),
            action_mask=masks,
            state=self.rng.normal(size=(E, 2)).astype(np.float32) if self.has_state else None,
        )

    def action(self) -> TeamAction:
        actions = {a: rows_of(TEAM.action_spaces[a], E, self.rng) for a in TEAM.agents}
        return TeamAction(actions, {a: self.rng.normal(size=E).astype(np.float32) for a in TEAM.agents})


def at(value: Any, e: int) -> Any:
    return tree.map_structure(lambda x: np.array(x[e]), value)


def play(made: Made) -> tuple[list[Any], list[list[dict[str, Any]]]]:
    """Plays T steps; returns the fragments, and per fragment its rows as plain dicts."""
    fragments, expected = [], []
    rows: list[list[dict[str, Any]]] = [[] for _ in range(E)]
    now, recorder = made.step(), None

    def cut(e: int) -> None:
        assert recorder is not None
        fragment = recorder.cut(e, now, TEAM.agents, terminated=True, **ABOUT)
        if fragment is None:
            assert not rows[e]
            return
        fragments.append(fragment)
        expected.append([*rows[e], {"step": step_row(now, e)}])
        rows[e] = []

    for t in range(T):
        action = made.action()
        recorder = recorder or Recorder(T, now, action)
        recorder.see(now)
        recorder.act(action)
        for e in range(E):
            rows[e].append(
                {"step": step_row(now, e), "action": at(action.actions, e), "logp": at(action.logp, e)}
            )
        now = made.step()
        recorder.reward(now.reward)
        for e in range(E):
            rows[e][-1]["reward"] = now.reward[e].copy()
            if (t, e) in ENDS:
                cut(e)
        if any(step == t for step, _ in ENDS):
            now = made.step()  # what a reset shows
    for e in range(E):
        cut(e)
    return fragments, expected


def step_row(step: TeamStep, e: int) -> dict[str, Any]:
    return {
        "obs": at(step.obs, e),
        "active": step.active[e].copy(),
        "mask": {a: m[e].copy() for a, m in step.action_mask.items()},
        "state": None if step.state is None else step.state[e].copy(),
    }


def assert_same(got: Any, expected: Any) -> None:
    tree.assert_same_structure(got, expected)
    tree.map_structure(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("masks_from", [0, 1, 5, T - 1, 10**6])
@pytest.mark.parametrize("state", [True, False])
def test_fragments_equal_plain_lists(masks_from: int, state: bool) -> None:
    """Wherever the environment begins to give masks; before, everything is allowed."""
    fragments, expected = play(Made(0, masks_from, state))
    assert len(fragments) == E + len(ENDS)
    for fragment, rows in zip(fragments, expected, strict=True):
        assert len(fragment) == len(rows) - 1
        assert list(fragment.obs) == list(fragment.actions) == list(TEAM.agents)
        for t, row in enumerate(rows):
            step = row["step"]
            assert_same({a: at(x, t) for a, x in fragment.obs.items()}, step["obs"])
            assert [fragment.active[a][t] for a in TEAM.agents] == step["active"].tolist()
            assert (fragment.state is None) == (not state)
            if fragment.state is not None:
                np.testing.assert_array_equal(fragment.state[t], step["state"])
            if t < len(fragment):
                for agent, mask in fragment.action_mask.items():
                    np.testing.assert_array_equal(mask[t], step["mask"].get(agent, np.ones(3, bool)))
                assert fragment.action_mask or not step["mask"], "no mask is lost"
                np.testing.assert_array_equal(fragment.reward[t], row["reward"])
                for i, agent in enumerate(TEAM.agents):
                    acted = step["active"][i]
                    zero = tree.map_structure(np.zeros_like, row["action"][agent])
                    assert_same(at(fragment.actions[agent], t), row["action"][agent] if acted else zero)
                    assert fragment.logp[agent][t] == (row["logp"][agent] if acted else 0)


def test_fragments_own_their_arrays() -> None:
    """What a fragment holds does not change when the recorder or the environment writes again."""
    made = Made(1)
    now, action = made.step(), made.action()
    recorder = Recorder(2, now, action)
    recorder.see(now)
    recorder.act(action)
    recorder.reward(now.reward)
    fragment = recorder.cut(0, now, TEAM.agents, terminated=False, **ABOUT)
    assert fragment is not None
    owned = (fragment.obs, fragment.actions, fragment.logp, fragment.active, fragment.reward, fragment.state)
    before = tree.map_structure(np.copy, owned)
    for buffer in tree.flatten(
        (recorder.obs, recorder.actions, recorder.logp, now.obs, now.active, now.state)
    ):
        buffer[...] = 1
    recorder.rewards[...] = recorder.active[...] = 1
    assert_same(owned, before)
