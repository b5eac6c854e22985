"""When a team stops sharing: by a step, by a share of the budget, or when its return stalls."""

from __future__ import annotations

from typing import Any

import pytest

from rllib_haml import LoRASAConfig
from rllib_haml.algorithms.phase_switch import PhaseSwitch


def first_due(switch: PhaseSwitch, returns: list[float | None], start: int = 0) -> int | None:
    """The iteration in which it is time; each one adds 100 steps to those of `start` iterations."""
    for i, value in enumerate(returns):
        if switch.due((start + i) * 100, value):
            return i
    return None


@pytest.mark.parametrize(
    "adapters_from, total, iteration",
    [(300, None, 3), (301, None, 4), (0, None, 0), (0.25, 2000, 5), (1.0, 800, 8), (None, None, None)],
)
def test_by_step_or_share(adapters_from: Any, total: int | None, iteration: int | None) -> None:
    switch = PhaseSwitch.of(adapters_from, total, patience=2, min_gain=0.0)
    assert first_due(switch, [1.0] * 12) == iteration
    assert switch.done == (iteration is not None)


def test_by_plateau() -> None:
    """Three iterations that gain less than a tenth of the range seen; none before a first return."""
    rising = [None, None, 0.0, 10.0, 20.0, 30.0]
    flat = [31.0, 32.0, 32.5]

    def switch() -> PhaseSwitch:
        return PhaseSwitch.of("plateau", None, patience=3, min_gain=0.1)

    assert first_due(switch(), [*rising, *flat]) == 8
    assert first_due(switch(), [*rising, 31.0, 40.0, 40.0, 40.0]) is None, "control: a gain begins anew"
    assert first_due(switch(), rising) is None


def test_it_goes_on_from_its_state() -> None:
    whole, first, second = (PhaseSwitch.of("plateau", None, 3, 0.1) for _ in range(3))
    returns = [0.0, 10.0, 10.0, 10.0, 10.0]
    assert first_due(whole, returns) == 4
    assert first_due(first, returns[:3]) is None
    second.set_state(first.get_state())
    assert first_due(second, returns[3:], start=3) == 1


@pytest.mark.parametrize(
    "training, message",
    [
        ({"adapters_from": 0.5}, r"adapters_from=0.5 is a fraction.*total_env_steps"),
        ({"adapters_from": "plato"}, r'adapters_from: given "plato", expected an integer.*plateau'),
        ({"adapters_from": 1.5}, r"adapters_from: given 1.5, expected"),
        ({"adapters_from": True}, r"adapters_from: given true, expected"),
        ({"lora": {"rank": 4}}, r"'rank'"),
    ],
)
def test_wrong_settings_say_what_is_right(training: dict[str, Any], message: str) -> None:
    config = LoRASAConfig().environment("matrix_game", env_config={"game": "climbing"}).training(**training)
    with pytest.raises(ValueError, match=message):
        config.validate()


def test_iterations_without_samples_are_not_waited_through() -> None:
    switch = PhaseSwitch.of("plateau", None, patience=2, min_gain=0.0)
    assert not any(switch.due(100, 1.0) for _ in range(10))
    assert [switch.due(steps, 1.0) for steps in (200, 300)] == [False, True]
