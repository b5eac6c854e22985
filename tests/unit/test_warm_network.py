"""What of an earlier run's networks goes on in another run, and what is refused."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import pytest
import torch
from lora_teams import make_actor, perturb
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_haml.algorithms import warm_network
from rllib_haml.algorithms.warm_network import FormerCritic, check_same_policy, take_over_critic
from rllib_haml.modules.critic import Critic


def make_critic(seed: int = 0, width: int = 5, **model_config: Any) -> Critic:
    torch.manual_seed(seed)
    return Critic(
        observation_space=gym.spaces.Box(-1, 1, (width,)),
        action_space=gym.spaces.Discrete(1),
        model_config={"fcnet_hiddens": [8]} | model_config,
    )


def learnt_critic(**model_config: Any) -> Critic:
    critic = make_critic(**model_config)
    perturb(critic, 3)
    if critic.value_norm is not None:
        critic.value_norm.update(torch.randn(50) * 7 + 3)
    return critic


def values(critic: Critic) -> torch.Tensor:
    states = torch.rand(6, 5, generator=torch.Generator().manual_seed(4))
    return critic.denormalise(critic.normalised_values(states))


@pytest.mark.parametrize("now", [{}, {"lora": {"r": 2}}, {"lora": {"r": 3}}], ids=["none", "same", "other"])
@pytest.mark.parametrize("before", [{}, {"lora": {"r": 2}}], ids=["plain", "adapted"])
def test_a_critic_goes_on_with_its_value_normaliser(before: dict[str, Any], now: dict[str, Any]) -> None:
    """With a low-rank difference that either has alone, or of another rank: values stay what they were."""
    former, critic = learnt_critic(**before), make_critic(9, **now)
    assert not torch.allclose(values(critic), values(former), atol=0.1), "control"
    assert FormerCritic.of(former).begin(critic) == ""
    torch.testing.assert_close(values(critic), values(former))
    if before == now:
        state = critic.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in former.state_dict().items())
    elif critic.lora is not None:
        assert not any(delta.any() for delta in critic.lora.deltas().values())


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"width": 6}, r"network\.0\.bias was of shape \(5,\) and is \(6,\)"),
        ({"fcnet_activation": "tanh"}, r"fcnet_activation was 'relu' and is 'tanh'"),
        ({"use_value_norm": False}, r"value_norm\.\w+ was of shape .* and is None"),
    ],
)
def test_another_critic_is_left_alone(settings: dict[str, Any], reason: str) -> None:
    critic = make_critic(**settings)
    before = {key: value.clone() for key, value in critic.state_dict().items()}
    assert re.match(reason, FormerCritic.of(learnt_critic()).begin(critic))
    assert all(torch.equal(value, before[key]) for key, value in critic.state_dict().items())


def run_with(critic: Critic, monkeypatch: pytest.MonkeyPatch, critic_lora: Any, step: int | None) -> Any:
    """An algorithm of one learner, as far as a warm start looks at it."""
    learner = SimpleNamespace(module={"critic": SimpleNamespace(unwrapped=lambda: critic)})
    monkeypatch.setattr(warm_network, "on_every_learner", lambda _, function: [function(learner)])
    config = SimpleNamespace(critic_lora=critic_lora, make_switch=lambda: SimpleNamespace(step=step))
    return SimpleNamespace(config=config)


@pytest.mark.parametrize("former", [None, learnt_critic()], ids=["none", "of other states"])
def test_a_critic_that_begins_anew_may_not_rest(
    former: Critic | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    critic = make_critic(width=6, lora={"r": 2})
    with pytest.raises(ValueError, match=r"critic_lora: the critic begins anew .* rest at random weights"):
        take_over_critic(run_with(critic, monkeypatch, {"r": 2}, 0), former)
    assert not caplog.records
    for algorithm in (
        run_with(critic, monkeypatch, {"r": 2}, 500),
        run_with(make_critic(width=6), monkeypatch, None, 0),
    ):
        take_over_critic(algorithm, former)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert all("The critic begins anew: " in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"fcnet_activation": "tanh"}, r"fcnet_activation was 'tanh' and is 'relu'"),
        ({"squash_actions": True}, r"squash_actions was True and is False"),
        ({"max_std": 0.9}, r"max_std was 0.9 and is 0.5"),
        ({"hidden_layer_norm": False}, r"hidden_layer_norm was False and is True"),
    ],
)
def test_a_backbone_of_other_settings_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(
        ValueError, match=rf"backbone_checkpoint='path' is another policy here, since {message}"
    ):
        check_same_policy("path", make_actor(), make_actor(**settings))


def test_what_does_not_change_the_policy_may_differ() -> None:
    others = {"head_gain": 0.5, "initial_std": 0.2, "orthogonal_init": False, "critic_fcnet_hiddens": [3]}
    check_same_policy("path", make_actor(), make_actor(**others))
    check_same_policy("path", make_actor("discrete"), make_actor("discrete", squash_actions=True))


def test_other_actions_of_the_same_number_are_refused() -> None:
    before = make_actor("multi binary")
    here = type(before)(
        observation_space=before.observation_space,
        action_space=gym.spaces.Discrete(3),
        model_config=dict(before.model_config),
    )
    with pytest.raises(ValueError, match=r"since action_space was .*MultiBinary\(3\) and is .*Discrete"):
        check_same_policy("path", here, before)


def test_a_users_own_module_is_no_backbone() -> None:
    with pytest.raises(ValueError, match="holds a DefaultModelConfig: expected this package's Actor"):
        check_same_policy("path", make_actor(), DefaultModelConfig())
