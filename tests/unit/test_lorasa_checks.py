"""What LoRASA's config refuses before a network is made, and what it tells."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from rllib_haml import LoRASAConfig
from rllib_haml.algorithms import lorasa_checks


def config(**training: Any) -> Any:
    """Two agents with three actions each: r=2 is low for every layer."""
    settings: dict[str, Any] = {"lora": {"r": 2}} | training
    return (
        LoRASAConfig()
        .environment("matrix_game", env_config={"game": "climbing"})
        .training(**settings)
        .rl_module(model_config={"fcnet_hiddens": [8, 8]})
    )


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Any:
    """The warnings of this test."""
    lorasa_checks._tell.cache_clear()
    return lambda: [
        r.getMessage() for r in caplog.records if (r.name, r.levelno) == ("rllib_haml", logging.WARNING)
    ]


@pytest.mark.parametrize(
    "training, message",
    [
        ({"lora": None}, r"^lora=None: expected keys"),
        ({"lora": {"target_modules": ["netwrk.1"]}}, r"^lora: target_modules names 'netwrk.1'.*'network.1'"),
        ({"lora": {"full_rank_policy": "error"}}, r"^lora: network.1.weight .* at most rank 1, and r=8"),
        ({"lora": {"rank_pattern": {"network.2": 1}}}, r"^lora: rank_pattern names 'network.2'"),
        ({"critic_lora": 8}, r"^critic_lora=8: expected keys"),
        ({"critic_lora": {"rank": 8}}, r"^critic_lora has no key 'rank'"),
        ({"critic_lora": {"target_modules": ["head"]}}, r"^critic_lora: target_modules names 'head'"),
        ({"critic_lora": {"r": 50, "full_rank_policy": "error"}}, r"^critic_lora: network"),
        ({"adapt_rank": True}, r"adapt_rank=True: expected keys such as"),
        ({"adapt_rank": {"every": True}}, r"adapt_rank: every=True"),
        ({"adapt_rank": {"energy": True}}, r"adapt_rank: energy=True"),
        ({"total_env_steps": "100"}, r'total_env_steps: given "100", expected an integer'),
        ({"plateau_patience": "20"}, r'plateau_patience: given "20", expected an integer'),
        ({"plateau_min_gain": None}, r"plateau_min_gain: given null, expected a number"),
    ],
)
def test_bad_values_are_refused(training: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**training).validate()


def test_layers_of_full_rank_are_told_once(told: Any) -> None:
    for _ in range(2):
        config(lora={"r": 8}).validate()
    (message,) = told()
    assert "network.1 (8, 1) (r=8)" in message
    assert "full_rank_policy='dense'" in message


@pytest.mark.parametrize(
    "training",
    [{"lora": {"r": 8}, "adapter_mode": "dense_delta"}, {"lora": {"r": 1, "exclude_modules": ["1"]}}],
)
def test_control_nothing_is_told(told: Any, training: dict[str, Any]) -> None:
    """Where full rank is what was asked for, and where all ranks are low."""
    config(**training).validate()
    assert not told()


def overriding(mode: str, **overrides: Any) -> Any:
    made = config(adapter_mode=mode, lora={"r": 1, "exclude_modules": ["1"]})
    return made.multi_agent(algorithm_config_overrides_per_module=overrides)


def test_settings_of_an_adapter_that_never_moves_alone(told: Any) -> None:
    with pytest.raises(ValueError, match=r"gives 'agent_1' entropy_coeff, which nothing would read.*joint"):
        overriding("joint", agent_1={"entropy_coeff": 0.1, "lr": 1e-3}).validate()
    overriding("joint", agent_1={"lr": 1e-3}).validate()
    assert not told()
    overriding("joint", backbone={"entropy_coeff": 0.1}).validate()
    overriding("alternating", agent_1={"entropy_coeff": 0.1}).validate()
    overriding("frozen", agent_1={"clip_param": 0.1}).validate()
    first, second = told()
    assert "'backbone' entropy_coeff: with adapter_mode: joint these hold for all" in first
    assert (
        "'agent_1' entropy_coeff: with adapter_mode: alternating these hold in the adapters' turns" in second
    )


def test_one_adapters_settings_part_what_would_move_at_once(told: Any) -> None:
    overriding("frozen", agent_1={"lr": 1e-3}).validate()
    overriding("frozen", critic={"lr": 1e-3}).training(update_scheme="simultaneous").validate()
    assert not told(), "control"
    overriding("frozen", agent_1={"lr": 1e-3}).training(update_scheme="simultaneous").validate()
    (message,) = told()
    assert "names agent_1: with update_scheme: simultaneous every adapter then moves by a mean" in message
