"""Fragments are sliced, ordered and dealt out without losing, doubling or moving a row."""

from __future__ import annotations

import dataclasses
import pickle
import random
from itertools import pairwise

import numpy as np
import pytest
import tree
from fragments import MASKED, TEAM, assert_equal, make_fragment

from rllib_haml.sampling.fragment import (
    JointFragment,
    JointTrainingData,
    in_batch_order,
    joined,
    reunited,
)

T = 9
WHOLE = make_fragment(T, masked=MASKED, state=True, terminated=True, env_t=40, first_row=100)
CUTS = [(0, 9), (0, 4), (4, 9), (3, 7), (8, 9), (5, 5), (9, 9)]


@pytest.mark.parametrize("start, stop", CUTS)
def test_a_slice_holds_its_rows_and_the_observation_after_them(start: int, stop: int) -> None:
    piece = WHOLE[start:stop]
    assert len(piece) == piece.env_steps() == stop - start
    for name, extra in (
        ("obs", 1),
        ("active", 1),
        ("action_mask", 1),
        ("state", 1),
        ("actions", 0),
        ("logp", 0),
    ):
        for x, y in zip(tree.flatten(getattr(piece, name)), tree.flatten(getattr(WHOLE, name)), strict=True):
            np.testing.assert_array_equal(x, y[start : stop + extra], err_msg=name)
    np.testing.assert_array_equal(piece.reward, WHOLE.reward[start:stop])
    assert (piece.env_t, piece.first_row) == (40 + start, 100 + start)
    assert piece.agent_steps() == sum(
        int(WHOLE.active[a][t]) for a in TEAM.agents for t in range(start, stop)
    )


@pytest.mark.parametrize("a, b", CUTS)
@pytest.mark.parametrize("c, d", [(0, 2), (1, 4), (0, 9), (2, 2)])
def test_a_slice_of_a_slice_is_a_slice(a: int, b: int, c: int, d: int) -> None:
    inner = (min(a + c, b), min(a + d, b))
    assert_equal(WHOLE[a:b][c:d], WHOLE[slice(*inner)])


@pytest.mark.parametrize("cuts", [[0, 9], [0, 4, 9], [0, 1, 2, 9]])
def test_joined_pieces_are_the_whole(cuts: list[int]) -> None:
    assert_equal(joined([WHOLE[a:b] for a, b in pairwise(cuts)]), WHOLE)


def test_pieces_before_the_first_mask_are_joined_as_if_all_was_allowed() -> None:
    first, second = dataclasses.replace(WHOLE[:4], action_mask={}), WHOLE[4:]
    for agent, mask in joined([first, second]).action_mask.items():
        np.testing.assert_array_equal(mask, [*np.ones((4, 3), bool), *second.action_mask[agent]])


def test_pieces_that_a_batch_took_in_several_rounds_are_reunited() -> None:
    whole, short, gap = make_fragment(11, 1), make_fragment(4, 2), make_fragment(9, 3)
    pieces = [whole[6:], gap[5:], short, whole[:4], gap[:4], whole[4:6]]
    found = {(f.episode_id, f.env_t): f for f in reunited(pieces)}
    assert sorted(found) == [("e1", 0), ("e2", 0), ("e3", 0), ("e3", 5)]
    assert_equal(found["e1", 0], whole)
    assert_equal(found["e2", 0], short)
    assert_equal(found["e3", 5], gap[5:])


def test_recurrent_policies_states_begin_a_fragment_and_cannot_be_cut_out_of_it() -> None:
    whole = make_fragment(5, actor_state={"zed": {"h": np.ones(3)}})
    assert whole[:3].actor_state == whole.actor_state
    with pytest.raises(ValueError, match="no state to begin with"):
        whole[1:]


@pytest.mark.parametrize("terminated", [True, False])
def test_of_adjacent_pieces_exactly_the_last_one_ends(terminated: bool) -> None:
    whole = make_fragment(T, terminated=terminated, truncated=not terminated)
    for cuts in ([0, 9], [0, 4, 9], [0, 1, 8, 9], [0, 4, 9, 9]):
        pieces = [whole[a:b] for a, b in pairwise(cuts)]
        flags = [(p.terminated, p.truncated) for p in pieces if len(p)]
        assert flags[-1] == (terminated, not terminated)
        assert sum(p.terminated or p.truncated for p in pieces) == 1
        assert sum(p.agent_steps() for p in pieces) == whole.agent_steps()


def test_slices_count_from_the_end_and_reject_gaps() -> None:
    assert_equal(WHOLE[-3:], WHOLE[6:9])
    assert_equal(WHOLE.slice(slice(2, 5), len_lookback_buffer=3), WHOLE[2:5])
    with pytest.raises(ValueError, match="contiguous"):
        WHOLE[::2]


def test_a_fragment_survives_pickling() -> None:
    assert_equal(pickle.loads(pickle.dumps(WHOLE)), WHOLE)


def batch() -> list[JointFragment]:
    """Two env runners, two sub-environments, episodes that end and begin within a batch."""
    spans = [((r, e), episode, t) for r in range(2) for e in range(2) for episode, t in (("x", 30), ("y", 0))]
    return [
        make_fragment(3 + i, i, source=source, episode_id=f"{episode}{source}", env_t=t)
        for i, (source, episode, t) in enumerate(spans)
    ]


def test_the_batchs_order_does_not_depend_on_arrival() -> None:
    expected = in_batch_order(batch())
    starts = 0
    for fragment in expected:
        assert fragment.first_row == starts
        starts += len(fragment)
    for seed in range(5):
        arrived = batch()
        random.Random(seed).shuffle(arrived)
        for one, other in zip(in_batch_order(arrived), expected, strict=True):
            assert_equal(one, other)


LENGTHS = (64, 5, 31, 7, 7, 2, 40, 1)


def dealt(lengths: tuple[int, ...], learners: int) -> list[list[JointFragment]]:
    fragments = in_batch_order([make_fragment(n, i, source=(0, i)) for i, n in enumerate(lengths)])
    shares = JointTrainingData(episodes=fragments).shard(learners, len_lookback_buffer=5)  # pyright: ignore
    assert all(isinstance(data, JointTrainingData) and extra == {} for data, extra in shares)
    return [list(data.episodes or []) for data, _ in shares]  # pyright: ignore


@pytest.mark.parametrize("learners", [1, 2, 3, 5])
def test_every_fragment_goes_whole_to_one_learner(learners: int) -> None:
    shares = dealt(LENGTHS, learners)
    assert len(shares) == learners
    assert sorted(len(f) for share in shares for f in share) == sorted(LENGTHS)
    rows = sorted(f.first_row + t for share in shares for f in share for t in range(len(f)))
    assert rows == list(range(sum(LENGTHS)))
    for share in shares:
        assert [f.first_row for f in share] == sorted(f.first_row for f in share)


@pytest.mark.parametrize("learners", [2, 3, 5])
def test_shares_are_balanced(learners: int) -> None:
    """Longest first: no share exceeds the mean by more than its own last, shortest fragment."""
    for share in dealt(LENGTHS, learners):
        rows = sum(map(len, share))
        assert rows - min(map(len, share)) <= sum(LENGTHS) / learners


def test_dealing_is_deterministic_and_survives_pickling() -> None:
    first, second = dealt(LENGTHS, 3), dealt(LENGTHS, 3)
    fragments = [f for share in first for f in share]
    for one, other in zip(fragments, (f for share in second for f in share), strict=True):
        assert_equal(one, other)
    data = JointTrainingData(episodes=fragments)  # pyright: ignore
    copy = pickle.loads(pickle.dumps(data))
    copy.validate()
    for one, other in zip(copy.episodes, fragments, strict=True):
        assert_equal(one, other)


def test_a_learner_may_get_no_rows() -> None:
    shares = dealt((12,), 3)
    assert [len(share) for share in shares] == [1, 0, 0]
