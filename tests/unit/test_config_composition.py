"""Instances are compositions of a drift, a neighbourhood and an order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from team_configs import config

import rllib_haml
from rllib_haml import HAPPO, HAMLConfig, HAPPOConfig
from rllib_haml.algorithms.hakl import AdaptiveKLDrift
from rllib_haml.haml import (
    ClipDrift,
    Everywhere,
    FixedOrder,
    JointClipDrift,
    KLBall,
    NoDrift,
    RandomOrder,
    SemiGreedyOrder,
)


def test_happo_is_an_instance_of_haml() -> None:
    made = HAPPOConfig().training(clip_param=0.3, num_epochs=4, minibatch_size=8, grad_clip=2.0)
    assert made.make_drift() == ClipDrift(0.3)
    assert made.make_neighbourhood() == Everywhere(4, 8, 2.0)
    assert made.make_order() == RandomOrder()
    assert HAPPO.get_default_config().algo_class is HAPPO
    assert HAMLConfig().make_drift() == NoDrift()


def test_a_list_is_a_fixed_order() -> None:
    order: Iterable[str] = ["carrier", "anchor", "scout"]
    made = config().training(order=order)
    made.validate()
    assert made.make_order() == FixedOrder(("carrier", "anchor", "scout"))


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("update_scheme", "parallel", "'sequential' or 'simultaneous'"),
        ("team_reward", "max", "'shared' or 'mean' or 'sum'"),
    ],
)
def test_a_wrong_choice_names_the_right_ones(key: str, value: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f'{key}: given "{value}".*{expected}'):
        config().training(**{key: value}).validate()


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("order", "sorted", r"order='sorted' is unknown.*random, semi_greedy"),
        ("order", {"type": "semi_gredy"}, "Did you mean 'semi_greedy'"),
        (
            "drift",
            "klip",
            r"drift='klip' is unknown. Did you mean 'clip'.*joint_clip, kl.*{type: ",
        ),
        ("drift", {"type": "kl", "coef": 1.0}, "kl takes no 'coef'. Did you mean 'coeff'"),
        ("drift", {"type": "kl"}, r"kl needs its coeff"),
        ("drift", "no_such_package.drifts:Mine", "cannot be imported: No module named 'no_such_package'"),
        ("neighbourhood", {"radius": 0.1}, "has no `type`: name one of everywhere, kl_ball"),
    ],
)
def test_a_wrong_component_names_the_right_ones(key: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        config().training(**{key: value}).validate()


class Far:
    """A component of the user's own."""

    def __init__(self, clip_param: float, width: float = 1.0):
        self.clip_param, self.width = clip_param, width

    def __call__(self, move: Any) -> Any:
        return move.ratio * 0


def test_components_by_name_by_path_and_as_objects() -> None:
    """An argument that bears the name of a config key takes that key's value unless it is given."""
    own, path = Far(0.5), f"{__name__}:Far"
    assert config().training(drift=own).make_drift() is own
    found: Any = config().training(drift={"type": path, "width": 3.0}, clip_param=0.7).make_drift()
    assert (type(found).__name__, found.clip_param, found.width) == ("Far", 0.7, 3.0)
    assert config().training(drift={"type": "clip", "clip_param": 0.4}).make_drift() == ClipDrift(0.4)
    ball = config().training(neighbourhood={"type": "kl_ball", "radius": 0.02}).make_neighbourhood()
    assert ball == KLBall(0.02)
    assert config().training(num_epochs=3).make_neighbourhood() == Everywhere(3, None, 10.0)
    assert config().training(order="semi_greedy").make_order() == SemiGreedyOrder()


def test_instances_are_compositions() -> None:
    made = {name: getattr(rllib_haml, f"{name}Config")() for name in rllib_haml.ALGORITHMS}
    clipped = made["A2PO"].training(clip_param=0.3)
    assert clipped.make_drift() == JointClipDrift(0.3, position_weight=0.5)
    assert (clipped.compound_bound(), clipped.preceding_agent_correction) == (0.15, True)
    assert clipped.drift_check().holds, "for any clip"
    assert made["A2PO"].training(compound_clip=0.5).compound_bound() == 0.5
    assert clipped.make_order() == SemiGreedyOrder()
    assert made["HATRPO"].make_neighbourhood() == KLBall(0.01)
    assert made["HAPPO"].make_drift() == made["MAPPO"].make_drift() == ClipDrift(0.2)
    for name in ("HAA2C", "HATRPO", "HAML"):
        assert made[name].make_drift() == NoDrift()
    for name, algo_config in made.items():
        assert algo_config.algo_class is getattr(rllib_haml, name)
        assert (algo_config.update_scheme == "simultaneous") == (name in ("IPPO", "MAPPO"))


class TotalVariation:
    """|r - 1|: it has a kink where a drift must be flat."""

    def __call__(self, move: Any) -> Any:
        return (move.ratio - 1).abs()


@pytest.mark.parametrize("drift, warns", [(TotalVariation(), True), ({"type": "kl", "coeff": 1.0}, False)])
def test_a_drift_outside_the_theory_works_and_says_so(
    drift: Any, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    made = config().training(drift=drift)
    with caplog.at_level("WARNING", logger="rllib_haml"):
        made.validate()
    said = [r.getMessage() for r in caplog.records if "flat at the present policy" in r.getMessage()]
    assert len(said) == warns
    assert made.drift_check().holds != warns


@dataclass
class Mutable(TotalVariation):
    """Not hashable."""

    width: float = 1.0


def test_a_drift_that_cannot_be_hashed_is_tried_too() -> None:
    made = config().training(drift=Mutable())
    made.validate()
    assert not made.drift_check().holds


def test_an_adaptive_drift_given_as_an_object_is_each_policys_own() -> None:
    made = config().training(drift=AdaptiveKLDrift(1.0))
    made.validate()
    drifts = made.build_learner()._drifts
    assert len(drifts) == len({id(drift) for drift in drifts.values()}) > 1
    next(iter(drifts.values())).adapt(100.0)
    assert sorted(float(drift.coeff) for drift in drifts.values()) == [*[1.0] * (len(drifts) - 1), 2.0]


def test_an_adaptive_weight_comes_back_from_its_ends() -> None:
    for extreme, kl in ((0.0, 1.0), (1.0, 0.0)):
        drift = AdaptiveKLDrift(1.0, target=0.01)
        for _ in range(300):
            drift.adapt(extreme)
        for _ in range(50):
            drift.adapt(kl)
        assert (float(drift.coeff) > 1) == (kl > 0.01)


@pytest.mark.parametrize(
    "key, value",
    [("update_scheme", "sequential"), ("order", "semi_greedy"), ("compound_clip", 0.1)],
)
def test_ippo_refuses_what_its_agents_do_not_know_of(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"IPPO does not take {key}=.*use HAPPO"):
        rllib_haml.IPPOConfig().training(**{key: value})


@pytest.mark.parametrize("key", ["huber_delta", "env_step_timeout_s"])
def test_zero_is_no_length(key: str) -> None:
    made = config()
    setattr(made, key, 0)
    with pytest.raises(ValueError, match=rf"{key}: given 0, expected a number \(0 < {key}\)"):
        made.validate()


@pytest.mark.parametrize("key", ["lr", "num_epochs", "minibatch_size"])
def test_hatrpo_refuses_what_its_step_does_not_read(key: str) -> None:
    with pytest.raises(ValueError, match=f"HATRPO does not take {key}=7: .*kl_ball, radius"):
        rllib_haml.HATRPOConfig().training(**{key: 7})
    rllib_haml.HATRPOConfig().training(critic_lr=1e-3, critic_num_epochs=7)
