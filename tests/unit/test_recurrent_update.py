"""A recurrent team's whole update on a learner, and what a learner hands on; no Ray process is started."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fake_envs import NAMES
from fragments import make_fragment
from test_on_policy_learner import make_learner, moved, weights

from rllib_haml.learners.batch import JointBatch
from rllib_haml.learners.connector import JointBatchConnector
from rllib_haml.learners.module_policy import RecurrentPolicy
from rllib_haml.sampling.fragment import JointFragment, in_batch_order

LENGTHS, SIZE, MAX_SEQ_LEN = (7, 1, 3, 5), 4, 3
GRU = {"use_gru": True, "lstm_cell_size": SIZE, "max_seq_len": MAX_SEQ_LEN, "head_gain": 1.0}


def fragments(team: Any, begin: int = 0) -> list[JointFragment]:
    """Of one episode each; `begin`: joint steps that came before."""
    rng = np.random.default_rng(begin)
    return in_batch_order(
        [
            make_fragment(
                n,
                10 * begin + i,
                team=team,
                source=(0, i),
                episode_id=f"episode {i}",
                env_t=begin and LENGTHS[i],
                actor_state={a: {"h": rng.normal(size=SIZE).astype(np.float32)} for a in NAMES},
            )
            for i, n in enumerate(LENGTHS)
        ]
    )


def batch_of(learner: Any, made: list[JointFragment]) -> dict[str, Any]:
    connector = JointBatchConnector(learner.config.team, "shared", "cpu", "arena")
    modules = {name: learner.module[name] for name in NAMES}
    return connector(rl_module=modules, batch={}, episodes=made)


def update(learner: Any, made: list[JointFragment]) -> None:
    learner._weights_seq_no += 1
    learner._update(batch_of(learner, made))
    learner.fit_critics()


def test_minibatches_tear_no_sequence_apart() -> None:
    """Units are a fragment's steps, `max_seq_len` at a time."""
    learner = make_learner(GRU)
    joint = JointBatch.of(batch_of(learner, fragments(learner.config.team)))
    rows = learner._rows(joint)
    expected, unit = [], -1
    for n in LENGTHS:
        for t in range(n):
            unit += t % MAX_SEQ_LEN == 0
            expected.append(unit)
    assert rows.units.tolist() == expected
    assert make_learner()._rows(joint).units is None, "control: nobody remembers"
    players = learner._players(joint)
    assert all(isinstance(player.policy, RecurrentPolicy) for player in players.values())
    assert {player.policy.max_seq_len for player in players.values()} == {MAX_SEQ_LEN}


@pytest.mark.parametrize("remembers", [True, False])
def test_a_learner_that_takes_up_the_state_goes_on_alike(remembers: bool) -> None:
    """Weights and Adam's moments, the order's seed, what the critic remembers of the episodes that go on."""
    first, second = (make_learner(GRU, seed=None, critic_num_epochs=3) for _ in range(2))
    update(first, fragments(first.config.team))
    state = first.get_state()
    if not remembers:
        state["critic_memories"] = {}
    torch.manual_seed(9)
    second.set_state(state)
    second._weights_seq_no = first._weights_seq_no
    for learner in (first, second):
        update(learner, fragments(learner.config.team, begin=1))
    before, after = weights(first), weights(second)
    assert all(torch.equal(value, after[key]) for key, value in before.items()) == remembers, "or the control"


def test_the_weight_of_a_penalty_is_handed_on() -> None:
    """Each policy's own, and not to env runners."""
    kl = {"type": "rllib_haml.algorithms.hakl:AdaptiveKLDrift", "target": 1e-9}
    first, second, fresh = (make_learner(GRU, drift=kl) for _ in range(3))
    update(first, fragments(first.config.team))
    second.set_state(first.get_state())
    results = []
    for learner in (first, second, fresh):
        update(learner, fragments(learner.config.team, begin=1))
        players = learner._players(JointBatch.of(batch_of(learner, fragments(learner.config.team))))
        results.append({name: float(player.drift.coeff) for name, player in players.items()})
    assert results == [dict.fromkeys(NAMES, 4.0), dict.fromkeys(NAMES, 4.0), dict.fromkeys(NAMES, 2.0)]
    assert "drifts" not in first.get_state(inference_only=True)
    assert "drifts" in first.get_state()


def test_nothing_is_made_on_the_default_device() -> None:
    """But where the module lies: nothing can be computed on the one that is set here."""
    learner = make_learner(GRU, num_epochs=1)
    batch = batch_of(learner, fragments(learner.config.team))
    before = weights(learner)
    with torch.device("meta"):
        learner._update(batch)
        learner.fit_critics()
    assert all(value.isfinite().all() for value in weights(learner).values())
    assert moved(learner, before) == {*NAMES, "critic"}
