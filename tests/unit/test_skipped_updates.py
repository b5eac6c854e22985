"""A learner whose update is not finite keeps that module as it was, counts it and says what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from fragments import make_fragment
from test_on_policy_learner import columns_of, fragments, make_learner, moved, weights
from torch import Tensor

from rllib_haml.learners import team_critic
from rllib_haml.sampling.faults import EnvironmentFault, PolicyFault
from rllib_haml.sampling.finite_fragments import check_fragments

ALL = {"scout", "carrier", "anchor", "critic"}


def update(learner: Any, batch: dict[str, Any]) -> None:
    """The sweep, then the critic's epochs."""
    learner._update(batch)
    learner._end_update()


def poison(learner: Any, module_id: str) -> tuple[Any, str]:
    """NaN in the gradient of a module's last weight from now on; how to take it away, and its name."""
    name, parameter = [(n, p) for n, p in learner.module[module_id].named_parameters() if p.requires_grad][-1]
    return parameter.register_hook(lambda gradient: gradient * float("nan")), f"{module_id}.{name}"


def moments(learner: Any, module_id: str) -> list[Tensor]:
    state = learner.get_optimizer(module_id).state_dict()["state"]
    return [value.clone() for _, each in sorted(state.items()) for value in each.values()]


def counts(learner: Any, module_id: str) -> tuple[int, int]:
    keys = ("num_updates_skipped_lifetime", "num_updates_skipped_in_a_row")
    return tuple(int(learner.metrics.peek((module_id, key))) for key in keys)  # type: ignore[return-value]


@pytest.mark.parametrize("neighbourhood", ["everywhere", {"type": "kl_ball", "radius": 0.01}])
@pytest.mark.parametrize("module_id", ["carrier", "critic"])
def test_the_poisoned_module_stays_bit_for_bit_and_the_others_move(
    module_id: str, neighbourhood: Any
) -> None:
    """The critic's value normaliser too; when the poison is gone, it goes on."""
    learner = make_learner(neighbourhood=neighbourhood)
    batch = columns_of(learner, fragments(learner.config.team))
    update(learner, batch)
    before, steps = weights(learner), moments(learner, module_id)
    hook, tensor = poison(learner, module_id)
    for row in (1, 2):
        update(learner, batch)
        assert counts(learner, module_id) == (row, row)
    assert moved(learner, before) == ALL - {module_id}
    assert all(map(torch.equal, moments(learner, module_id), steps))
    assert learner.skipped.causes == {module_id: f"the gradient of {tensor} is not finite"}
    assert all(counts(learner, other) == (0, 0) for other in ALL - {module_id})
    hook.remove()
    update(learner, batch)
    assert moved(learner, before) == ALL
    assert counts(learner, module_id) == (2, 0)
    assert learner.skipped.causes == {}


def test_control_without_the_guard_weights_become_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rllib_haml.haml.neighbourhood.check_gradient", lambda loss, flat, p: flat.norm())
    monkeypatch.setattr("rllib_haml.haml.finite.check_weights", lambda tensors: None)
    monkeypatch.setattr(team_critic, "check_weights", lambda tensors: None)
    monkeypatch.setattr("rllib_haml.haml.finite.check_finite", lambda what, values, rows: None)
    learner = make_learner()
    batch = columns_of(learner, fragments(learner.config.team))
    for module_id in ("carrier", "critic"):
        poison(learner, module_id)
    update(learner, batch)
    for module_id in ("carrier", "critic"):
        assert any(not p.isfinite().all() for p in learner.module[module_id].parameters())


@pytest.mark.parametrize("column", ["rewards", "state"])
def test_an_advantage_that_is_not_finite_moves_nobody_and_is_named(column: str) -> None:
    """A NaN reward, or a state that the critic values NaN, given to the learner directly."""
    learner = make_learner()
    batch = columns_of(learner, fragments(learner.config.team))
    update(learner, batch)
    before = weights(learner)
    batch["critic"][column][2] = float("nan")
    update(learner, batch)
    assert moved(learner, before) == set()
    assert learner.skipped.causes == dict.fromkeys(ALL, "the advantage is not finite")


def test_an_adaptive_drift_does_not_learn_from_an_update_that_was_not_applied() -> None:
    learner = make_learner(drift={"type": "rllib_haml.algorithms.hakl:AdaptiveKLDrift"}, num_epochs=1)
    poison(learner, "carrier")
    told: list[str] = []
    for name, drift in learner._drifts.items():
        drift.adapt = lambda kl, name=name: told.append(name)
    update(learner, columns_of(learner, fragments(learner.config.team)))
    assert sorted(told) == ["anchor", "scout"]


def test_lifetime_counts_are_checkpointed_and_patience_is_not() -> None:
    learner, other = make_learner(), make_learner()
    poison(learner, "carrier")
    batch = columns_of(learner, fragments(learner.config.team))
    update(learner, batch)
    other.set_state(learner.get_state())
    update(other, batch)
    assert counts(other, "carrier") == (1, 0)
    poison(other, "carrier")
    update(other, batch)
    assert counts(other, "carrier") == (2, 1)


def obs(name: str, row: int) -> Callable[[Any], str]:
    def spoil(fragment: Any) -> str:
        fragment.obs[name][row, 1] = np.inf
        return rf"step {fragment.env_t + row} .*agent '{name}'.*the observation\[1\] is inf"

    return spoil


def reward(fragment: Any) -> str:
    fragment.reward[2, 1] = np.nan
    return rf"step {fragment.env_t + 2} .*agent '{list(fragment.obs)[1]}'.*the reward is nan"


def state(fragment: Any) -> str:
    fragment.state[3, 1, 0] = -np.inf
    return rf"step {fragment.env_t + 3} .*: the state\[1\]\[0\] is -inf"


@pytest.mark.parametrize("spoil", [obs("scout", 0), obs("carrier", 4), reward, state])
def test_what_samplers_give_is_looked_at(spoil: Callable[[Any], str]) -> None:
    """RLlib's own env runner does not look; the last row is what follows the last step."""
    team = make_learner().config.team
    made = [make_fragment(4, i, team=team, state=True, source=(0, i)) for i in range(2)]
    check_fragments(made, "arena")
    message = spoil(made[1])
    with pytest.raises(EnvironmentFault, match=f"environment arena, {message}"):
        check_fragments(made, "arena")


def test_a_policy_that_draws_no_number_is_to_blame() -> None:
    """Unless the environment gave it none, of which the log-probability is a consequence."""
    team = make_learner().config.team
    made = [make_fragment(4, i, team=team, state=True, source=(0, i), env_t=20) for i in range(2)]
    made[0].logp["scout"][3] = np.nan
    with pytest.raises(PolicyFault, match=r"policy of agent 'scout' .* log-probability nan in step 23 of"):
        check_fragments(made, "arena")
    made[1].reward[2, 0] = np.nan
    with pytest.raises(EnvironmentFault, match="the reward is nan"):
        check_fragments(made, "arena")
