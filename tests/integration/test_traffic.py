"""Fragments and actors' weights travel, and little else: bytes sent against bytes of the arrays in them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from traffic import Traffic, needed, parameter_bytes, recorded, sent

from rllib_haml import HAPPOConfig

ACTORS = {"agent_0", "agent_1", "agent_2"}
FRAGMENT_OVERHEAD, WEIGHT_OVERHEAD = 1.15, 1.05


@pytest.fixture(scope="module")
def algo(ray_cluster: None) -> Iterator[Any]:
    algo = (
        HAPPOConfig()
        .environment("mpe", env_config={"scenario": "simple_spread_v3", "local_ratio": 0.0})
        .env_runners(num_env_runners=1, num_envs_per_env_runner=4, num_cpus_per_env_runner=0)
        .learners(num_learners=1)
        .evaluation(evaluation_num_env_runners=1, evaluation_duration=1)
        .training(train_batch_size_per_learner=1000, num_epochs=1, critic_num_epochs=1)
        .rl_module(model_config={"fcnet_hiddens": [64, 64], "use_lstm": True})
        .debugging(seed=3)
        .build_algo()
    )
    algo.train()
    yield algo
    algo.stop()


@pytest.fixture(scope="module")
def iteration(algo: Any) -> Traffic:
    with recorded(algo) as traffic:
        algo.train()
    return traffic


def test_fragments_travel_with_little_overhead(iteration: Traffic) -> None:
    assert sum(map(len, iteration.fragments)) == 1000
    ratio = sum(map(sent, iteration.answers)) / needed(iteration.fragments)
    print(f"fragments: {ratio:.3f}")
    assert 1 < ratio < FRAGMENT_OVERHEAD


def test_actors_weights_travel_once_and_no_critic(algo: Any, iteration: Traffic) -> None:
    sizes = parameter_bytes(algo)
    assert sizes.keys() == ACTORS | {"critic"}
    must = sum(sizes[name] for name in ACTORS)
    (weights,), (state,) = iteration.weights, iteration.states
    assert set(weights["rl_module"]) == set(state["learner"]["rl_module"]) == ACTORS
    print(f"weights: {sent(weights) / must:.3f}, from the learner {sent(state) / must:.3f}")
    assert 1 < sent(weights) / must < WEIGHT_OVERHEAD
    assert 1 < sent(state) / must < WEIGHT_OVERHEAD, (
        "of the learner's own, such as the critic's memory, nothing"
    )


def test_evaluation_gets_no_critic_either(algo: Any) -> None:
    with recorded(algo) as traffic:
        algo.evaluate()
    (weights,) = traffic.weights
    assert {name for name, state in weights["rl_module"].items() if state} == ACTORS


def test_control_a_whole_learner_is_over_the_bound(algo: Any) -> None:
    whole = algo.learner_group.get_state()["learner"]
    assert "critic" in whole["rl_module"]
    assert sent(whole) / sum(parameter_bytes(algo)[name] for name in ACTORS) > 2 * WEIGHT_OVERHEAD
