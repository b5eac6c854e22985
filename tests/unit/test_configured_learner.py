"""What the user gives with a checkpoint counts from the first update; no Ray process is started.

Each learner that is restored is held against one that was built with the new settings and brought to the
same weights and moments by hand.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_lorasa_learner import make_learner as make_adapters
from test_lorasa_learner import update as update_adapters
from test_on_policy_learner import fragments, make_learner, weights

from rllib_haml.algorithms.hakl import AdaptiveKLDrift
from rllib_haml.learners.configured_learner import NUM_ENV_STEPS_BEFORE
from rllib_haml.sampling.fragment import JointTrainingData

POLICIES = {"scout", "carrier", "anchor"}
ALL = POLICIES | {"critic"}
# As much as the checkpoint had seen, and what its next update has seen.
STEPS = {NUM_ENV_STEPS_BEFORE: 1000, "num_env_steps_sampled_lifetime": 1017}
OLD = {"lr": 1e-2, "critic_lr": 1e-2, "adam_epsilon": 1e-8}


def update(learner: Any, timesteps: dict[str, int] = STEPS) -> Any:
    """The metrics of one update."""
    data = JointTrainingData(episodes=fragments(learner.config.team))
    results = learner.update(training_data=data, timesteps=timesteps)
    learner.fit_critics()
    return results


def moved(learner: Any, before: dict[str, torch.Tensor]) -> set[str]:
    """Modules with other weights; the value normaliser's statistics follow every batch."""
    now = {key: value for key, value in weights(learner).items() if "value_norm" not in key}
    return {key.split("/")[0] for key, value in now.items() if not torch.equal(value, before[key])}


@pytest.fixture(scope="module")
def trained() -> Any:
    """The state after two updates, and the weights after a third under the same settings."""
    learner = make_learner(**OLD)
    for _ in range(2):
        update(learner)
    state = copy.deepcopy(learner.get_state())
    update(learner)
    return state, weights(learner)


@pytest.fixture
def state(trained: Any) -> Any:
    return copy.deepcopy(trained[0])  # learners go on in its arrays


def brought_to(state: Any, learner: Any) -> Any:
    """The learner with the weights and Adam's moments of `state`."""
    learner._weights_seq_no = state["weights_seq_no"]
    learner.module.set_state(state["rl_module"])
    for name, optimizer in learner._named_optimizers.items():
        saved = state["optimizer"][name]["state"]["state"]
        for index, p in enumerate(optimizer.param_groups[0]["params"]):
            optimizer.state[p] = {key: torch.as_tensor(value).clone() for key, value in saved[index].items()}
    return learner


# The settings, and what moves otherwise under them.
GIVEN: dict[str, tuple[dict[str, Any], set[str]]] = {
    "rates": ({"lr": 1e-4, "critic_lr": 3e-4}, ALL),
    "schedules": (
        {"lr": [[0, 1.0], [1000, 1e-4], [1017, 1.0]], "critic_lr": [[0, 0.0], [1000, 3e-4], [2000, 0.0]]},
        ALL,
    ),
    "epsilon": ({"adam_epsilon": 1e-2}, ALL),
    "weight_decay": ({"weight_decay": 0.3}, ALL),
    "sweep": ({"num_epochs": 3, "minibatch_size": None, "clip_param": 1e-3, "grad_clip": 0.1}, ALL),
    "critic": ({"critic_num_epochs": 1, "critic_minibatch_size": None, "vf_clip_param": 1e-3}, {"critic"}),
    "entropy": ({"entropy_coeff": [[0, 0.0], [1017, 0.5]]}, POLICIES),
    "nothing": ({}, set()),
    "drift": ({"drift": {"type": "kl", "coeff": 9.0}}, POLICIES),
}


@pytest.mark.parametrize("what", GIVEN)
def test_it_counts_from_the_first_update(what: str, state: Any, trained: Any) -> None:
    given, differing = GIVEN[what]
    restored, expected = make_learner(**OLD | given), brought_to(state, make_learner(**OLD | given))
    restored.set_state(state)
    for learner in (restored, expected):
        update(learner)
    for key, value in weights(expected).items():
        assert torch.equal(value, weights(restored)[key]), key
    assert moved(restored, trained[1]) == differing, "control: under the old settings it goes elsewhere"


def test_what_is_reported_is_what_was_used(state: Any) -> None:
    """With RLlib's own timesteps alone, too."""
    restored = make_learner(**OLD | {"lr": [[0, 0.0], [1000, 0.0], [1017, 1e-3]], "critic_lr": 0.0})
    restored.set_state(state)
    before = weights(restored)
    results = update(restored)
    assert moved(restored, before) == set()
    assert float(results["scout"]["default_optimizer_learning_rate"].peek()) == 0.0
    results = update(restored, {"num_env_steps_sampled_lifetime": 2000})
    assert moved(restored, before) == POLICIES
    assert float(results["scout"]["default_optimizer_learning_rate"].peek()) == 1e-3


def test_the_policies_to_train_are_those_given(state: Any) -> None:
    restored = make_learner(**OLD, policies_to_train=["scout"])
    restored.set_state(state)
    before = weights(restored)
    update(restored)
    assert moved(restored, before) == {"scout", "critic"}


def test_a_drift_goes_on_adapting_unless_another_is_given(state: Any) -> None:
    """A checkpoint of another kind of drift brings none."""

    def coefficient(saved: Any, **drift: float) -> float:
        learner = make_learner(drift=AdaptiveKLDrift(**drift))
        learner.set_state(saved)
        return float(learner._drifts["scout"].coeff)

    adapted = make_learner(drift=AdaptiveKLDrift(coeff=2.0))
    adapted._drifts["scout"].coeff.fill_(7.0)
    saved = adapted.get_state()
    assert coefficient(saved, coeff=2.0) == coefficient(saved, coeff=2.0, target=0.5) == 7.0
    assert coefficient(saved, coeff=3.0) == 3.0
    assert coefficient(state, coeff=3.0) == 3.0
    make_learner().set_state(saved)  # the clip drift has nothing to go on from
    earlier = {key: value for key, value in saved.items() if key != "drifts_at_first"}
    assert coefficient(earlier, coeff=2.0) == 7.0, "of a release that did not keep what they were made as"


@pytest.mark.parametrize("given", [{"lr": 1e-30}, {"critic_lr": 1e-30}, {}], ids=str)
def test_adapters_and_the_critics_difference_have_settings_too(given: dict[str, float]) -> None:
    """Control: without new ones all move."""
    settings: dict[str, Any] = {"adapters_from": 0, "critic_lora": {"r": 1}, "critic_lr": 1e-2}
    first = make_adapters(2, **settings)
    first.begin_adapters()
    update_adapters(first)
    restored = make_adapters(2, **settings | given)
    restored.set_state(first.get_state())
    before = weights(restored)
    restored.before_gradient_based_update(timesteps=STEPS)
    update_adapters(restored)
    resting = {"lr": {"agent_0", "agent_1"}, "critic_lr": {"critic"}}
    expected = {"agent_0", "agent_1", "critic"}.difference(*(resting[key] for key in given))
    assert moved(restored, before) - {"backbone"} == expected
