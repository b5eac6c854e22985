"""The learner's joint batch equals plain loops over fragments."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import tree
from fragments import MASKED, STATE_SPACE, TEAM, make_fragment
from gymnasium import spaces
from ray.rllib.connectors.connector_pipeline_v2 import ConnectorPipelineV2
from ray.rllib.core.columns import Columns

from rllib_haml.learners.batch import ACTIVE, JointBatch
from rllib_haml.learners.connector import JointBatchConnector, state_size
from rllib_haml.modules.actor import ACTION_MASK
from rllib_haml.sampling.fragment import JointFragment, in_batch_order
from rllib_haml.sampling.team import Team, TeamReward

LENGTHS = (4, 1, 7, 3)
WITH_STATE = dataclasses.replace(TEAM, state_space=STATE_SPACE)


def fragments(**settings: Any) -> list[JointFragment]:
    """The first ends in a terminal state, the second by a time limit; the others are cut."""
    made = [
        make_fragment(n, i, source=(0, i), terminated=i == 0, truncated=i == 1, **settings)
        for i, n in enumerate(LENGTHS)
    ]
    return in_batch_order(made)


def joined(
    made: list[JointFragment], team: Team = TEAM, rule: TeamReward = "shared"
) -> tuple[JointBatch, dict[str, dict[str, Any]]]:
    connector = JointBatchConnector(team, rule, "cpu", "arena")
    columns = connector(rl_module=None, batch={}, episodes=made)
    return JointBatch.of(columns), columns


def steps(made: list[JointFragment]) -> list[tuple[JointFragment, int]]:
    return [(f, t) for f in made for t in range(len(f))]


def assert_rows(got: Any, expected: list[Any]) -> None:
    """`got` (S, ...) tree of tensors; `expected` S trees of arrays."""
    for r, row in enumerate(expected):
        tree.map_structure(lambda x, y, r=r: np.testing.assert_array_equal(np.asarray(x)[r], y), got, row)


def test_row_r_is_the_same_joint_step_under_every_policy() -> None:
    made = fragments()
    batch, _ = joined(made)
    assert list(batch.policies) == ["boss", "hands", "zed"]
    for name, agents in TEAM.members().items():
        columns = batch.policies[name]
        for k, agent in enumerate(agents):
            own = tree.map_structure(lambda x, k=k: x[:, k], columns)
            wanted = {
                Columns.OBS: [tree.map_structure(lambda x, t=t: x[t], f.obs[agent]) for f, t in steps(made)],
                Columns.ACTIONS: [f.actions[agent][t] for f, t in steps(made)],
                Columns.ACTION_LOGP: [f.logp[agent][t] for f, t in steps(made)],
                ACTIVE: [f.active[agent][t] for f, t in steps(made)],
            }
            assert own.keys() == wanted.keys()
            for key, rows in wanted.items():
                assert_rows(own[key], rows)
                assert len(tree.flatten(own[key])[0]) == sum(LENGTHS)


def test_the_critics_rows() -> None:
    made = fragments(present=0.4)
    batch, _ = joined(made)
    assert batch.reward.tolist() == [np.float32(f.reward[t, 0]) for f, t in steps(made)]
    assert batch.terminated.tolist() == [f.terminated and t == len(f) - 1 for f, t in steps(made)]
    assert batch.any_active.tolist() == [any(f.active[a][t] for a in TEAM.agents) for f, t in steps(made)]
    assert not batch.any_active.all()
    assert batch.row.tolist() == list(range(sum(LENGTHS)))
    assert batch.last.tolist() == [t == n for n in LENGTHS for t in range(n + 1)]
    assert batch.lengths.tolist() == list(LENGTHS)


def test_the_critic_sees_everyone_and_who_is_alive() -> None:
    made = fragments()
    batch, _ = joined(made)
    rows = []
    for f in made:
        for t in range(len(f) + 1):
            row: list[float] = []
            for agent in TEAM.agents:
                space = TEAM.observation_spaces[agent]
                obs = tree.map_structure(lambda x, t=t: x[t], f.obs[agent])
                alive = bool(f.active[agent][t])
                row += list(spaces.flatten(space, obs)) if alive else [0.0] * spaces.flatdim(space)
                row.append(float(alive))
            rows.append(row)
    np.testing.assert_array_equal(batch.states, np.array(rows, np.float32))
    assert batch.states.shape[1] == state_size(TEAM)


def test_the_critic_sees_the_environments_state_where_there_is_one() -> None:
    made = fragments(state=True)
    batch, _ = joined(made, WITH_STATE)
    rows = [f.state[t].reshape(-1) for f in made if f.state is not None for t in range(len(f) + 1)]
    np.testing.assert_array_equal(batch.states, rows)
    assert state_size(WITH_STATE) == 4


@pytest.mark.parametrize("rule", ["sum", "mean"])
def test_the_reward_follows_the_rule(rule: TeamReward) -> None:
    made = fragments(equal_rewards=False)
    batch, _ = joined(made, rule=rule)
    divisor = 1 if rule == "sum" else len(TEAM.agents)
    expected = [sum(f.reward[t].tolist()) / divisor for f, t in steps(made)]
    np.testing.assert_allclose(batch.reward, expected, rtol=1e-6)


@pytest.mark.parametrize("masked", [MASKED, ("left",), ("right",), ()])
def test_masks_reach_the_policy_of_those_who_have_them(masked: tuple[str, ...]) -> None:
    """An agent without a mask, in a fragment or in all, may do anything."""
    made = fragments(masked=masked)
    made[0] = dataclasses.replace(made[0], action_mask={})
    batch, _ = joined(made)
    assert all(ACTION_MASK not in batch.policies[name] for name in ("zed", "boss"))
    if not masked:
        assert ACTION_MASK not in batch.policies["hands"]
        return
    expected = [
        [f.action_mask[a][t] if a in f.action_mask else np.ones(3, bool) for a in MASKED]
        for f, t in steps(made)
    ]
    np.testing.assert_array_equal(batch.policies["hands"][ACTION_MASK], expected)


def test_columns_by_fragment_are_time_major_and_padded() -> None:
    batch, _ = joined(fragments())
    rows = torch.arange(1, sum(LENGTHS) + 1).double()
    columns, filled = batch.columns_by_fragment(rows)
    assert columns.shape == filled.shape == (max(LENGTHS), len(LENGTHS))
    start = 0
    for f, length in enumerate(LENGTHS):
        for t in range(max(LENGTHS)):
            there = t < length
            assert bool(filled[t, f]) == there
            assert columns[t, f] == (rows[start + t] if there else 0)
        start += length
    assert torch.equal(batch.rows_of(columns), rows)
    noise = torch.where(filled, columns, torch.nan)
    assert torch.equal(batch.rows_of(noise), rows), "padding does not come back"
    assert torch.equal(batch.columns_by_fragment(batch.rows_of(columns))[0], columns)


@pytest.mark.parametrize("max_seq_len", [1, 3, 100])
def test_units_are_numbered_over_all_fragments(max_seq_len: int) -> None:
    expected, unit = [], -1
    for n in LENGTHS:
        for t in range(n):
            unit += t % max_seq_len == 0
            expected.append(unit)
    assert joined(fragments())[0].units(max_seq_len).tolist() == expected


@pytest.mark.parametrize("team", [TEAM, WITH_STATE], ids=["joint observation", "state"])
def test_a_learner_without_fragments_has_columns_of_the_same_shape(team: Team) -> None:
    empty, columns = joined([], team)
    full, others = joined(fragments(state=team.state_space is not None), team)
    assert columns.keys() == others.keys()
    for name in columns:
        tree.assert_same_structure(columns[name], others[name])
        for x, y in zip(tree.flatten(columns[name]), tree.flatten(others[name]), strict=True):
            assert len(x) == 0
            assert (x.shape[1:], x.dtype) == (y.shape[1:], y.dtype)
    padded, filled = empty.columns_by_fragment(empty.reward)
    assert padded.shape == filled.shape == (0, 0)
    assert empty.rows_of(padded).shape == (0,)
    assert full.reward.shape == (sum(LENGTHS),)


def test_it_is_a_piece_of_rllibs_pipeline() -> None:
    connector = JointBatchConnector(TEAM, "shared", "cpu", "arena")
    pipeline = ConnectorPipelineV2(TEAM.observation_spaces["zed"], TEAM.action_spaces["zed"], connectors=[])
    pipeline.append(connector)
    assert connector.input_observation_space == TEAM.observation_spaces["zed"]
    columns = pipeline(rl_module=None, batch={}, episodes=fragments(), explore=None)
    torch.testing.assert_close(JointBatch.of(columns).states, joined(fragments())[0].states)


def test_only_fragments_are_taken() -> None:
    connector = JointBatchConnector(TEAM, "shared", "cpu", "arena")
    with pytest.raises(TypeError, match="got a dict"):
        connector(rl_module=None, batch={}, episodes=[{}])


def test_masks_of_several_sizes_are_refused() -> None:
    made = fragments(masked=MASKED)
    made[2].action_mask["right"] = np.ones((len(made[2]) + 1, 5), bool)
    with pytest.raises(ValueError, match=r"share a policy have several sizes: 3 \('.*'\), 5 \('right'\)"):
        joined(made)


def test_a_fragment_without_the_state_that_others_have_is_refused() -> None:
    """Left out, its rows would be read off its neighbours'."""
    made = fragments(state=True)
    made[1] = dataclasses.replace(made[1], state=None, env_t=9)
    with pytest.raises(ValueError, match=r"The fragment of episode 'e.' from step 9 on has no `state`"):
        joined(made, WITH_STATE)
