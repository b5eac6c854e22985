"""The config takes what PPO's takes, and refuses by name what it cannot mean."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import yaml
from fake_envs import NAMES
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from team_configs import Silent, config

from rllib_haml import HAPPOConfig, MAPPOConfig
from rllib_haml.algorithms import ppo_keys
from rllib_haml.sampling.joint_env_runner import JointEnvRunner


def training_keys() -> list[str]:
    found: list[str] = []
    for kind in (PPOConfig, AlgorithmConfig):
        found += [p for p in inspect.signature(kind.training).parameters if p not in ("self", "kwargs")]
    return found


@pytest.mark.parametrize("key", training_keys())
def test_every_key_of_ppo_has_exactly_one_fate(key: str) -> None:
    fates = [key in fate for fate in (ppo_keys.SAME, ppo_keys.OWN_MEANING, ppo_keys.REFUSED)]
    assert sum(fates) == 1


def test_no_fate_is_given_to_a_key_that_ppo_lacks() -> None:
    known = ppo_keys.SAME | ppo_keys.OWN_MEANING.keys() | ppo_keys.REFUSED.keys()
    assert known == set(training_keys())


MEANT: dict[str, Any] = {
    "use_critic": False,
    "use_gae": False,
    "use_kl_loss": True,
    "kl_coeff": 0.2,
    "kl_target": 0.01,
    "entropy_coeff_schedule": [[0, 0.1], [100, 0.0]],
    "lr_schedule": [[0, 0.1], [100, 0.0]],
    "vf_share_layers": True,
    "grad_clip_by": "value",
    "shuffle_batch_per_epoch": False,
    "model": {"fcnet_hiddens": [3]},
    "optimizer": {"eps": 1e-3},
    "num_sgd_iter": 3,
    "num_aggregator_actors_per_learner": 2,
    "max_requests_in_flight_per_aggregator_actor": 7,
    "max_requests_in_flight_per_sampler_worker": 4,
    "learner_connector": lambda *_: None,
    "add_default_connectors_to_learner_pipeline": False,
}


@pytest.mark.parametrize("key", ppo_keys.REFUSED)
@pytest.mark.parametrize("way", ["training", "update_from_dict"])
def test_a_refused_key_names_what_to_write_instead(key: str, way: str) -> None:
    def write() -> Any:
        given = {key: MEANT[key]}
        return (
            config().training(**given) if way == "training" else config().update_from_dict(given).validate()
        )

    with pytest.raises(ValueError) as caught:
        write()
    assert f"does not take {key}=" in str(caught.value)
    assert ppo_keys.REFUSED[key].instead in str(caught.value)


@pytest.mark.parametrize("key", ppo_keys.REFUSED)
def test_a_value_that_says_nothing_is_accepted(key: str) -> None:
    for neutral in ppo_keys.REFUSED[key].neutral:
        config().training(**{key: neutral}).validate()


def named_in(text: str) -> list[str]:
    """The keys and methods between backticks: the first word of each."""
    return re.findall(r"`\.?([a-z_]+)", text)


def test_what_stands_between_backticks() -> None:
    assert named_in("use `lr`, `.rl_module(x={...})` or `lambda_: 1.0`; a `Class`") == [
        "lr",
        "rl_module",
        "lambda_",
    ]


@pytest.mark.parametrize("key", [*ppo_keys.REFUSED, *ppo_keys.OWN_MEANING])
def test_what_is_to_be_written_instead_exists(key: str) -> None:
    text = ppo_keys.REFUSED[key].instead if key in ppo_keys.REFUSED else ppo_keys.OWN_MEANING[key]
    made = config()
    assert not hasattr(made, "critic_lrr"), "control: a config has no attributes that nobody gave it"
    assert [name for name in named_in(text) if not hasattr(made, name)] == []


@pytest.mark.parametrize("key", ["entropy_coeff", "lr"])
def test_a_schedule_is_written_as_the_refusal_says(key: str) -> None:
    (written,) = re.findall(r"`(\w+: .*)`", ppo_keys.REFUSED[f"{key}_schedule"].instead)
    given = yaml.safe_load(written)
    assert given.keys() == {key}
    config().training(**given).validate()


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(TypeError, match="critic_lrr"):
        config().training(critic_lrr=1e-3)


def settle(made: Any) -> Any:
    """The calls that a user of PPO's config would write."""
    return (
        made.environment("scripted_team", env_config={"equal_rewards": True}, disable_env_checking=True)
        .env_runners(num_env_runners=2, num_envs_per_env_runner=3, sample_timeout_s=30.0, explore=True)
        .multi_agent(policies=set(NAMES), policy_mapping_fn=lambda agent, episode, **_: agent)
        .training(
            lr=1e-3, gamma=0.98, lambda_=0.9, clip_param=0.1, entropy_coeff=0.01, grad_clip=1.0, num_epochs=2,
            minibatch_size=32, vf_loss_coeff=0.5, vf_clip_param=5.0, train_batch_size_per_learner=64,
        )
        .rl_module(model_config={"fcnet_hiddens": [4]})
        .learners(num_learners=0, num_gpus_per_learner=0)
        .evaluation(evaluation_interval=2, evaluation_duration=3, evaluation_config={"explore": False})
        .callbacks(Silent)
        .reporting(metrics_num_episodes_for_smoothing=7)
        .debugging(seed=3)
        .fault_tolerance(restart_failed_env_runners=True)
    )  # fmt: skip


@pytest.mark.parametrize("kind", [HAPPOConfig, MAPPOConfig])
def test_the_config_takes_the_calls_of_ppos(kind: type) -> None:
    made, reference = settle(config(kind)), settle(PPOConfig())
    made.validate()
    keys = (
        "lr",
        "gamma",
        "lambda_",
        "clip_param",
        "num_epochs",
        "minibatch_size",
        "grad_clip",
        "vf_clip_param",
    )
    assert [getattr(made, key) for key in keys] == [getattr(reference, key) for key in keys]
    assert made.total_train_batch_size == 64
    assert made.env_runner_cls is JointEnvRunner
    made.copy(copy_frozen=False).validate()


def test_a_config_survives_the_way_through_a_dict() -> None:
    made = settle(config()).training(critic_lr=1e-4, order=list(NAMES), team_reward="mean")
    again = HAPPOConfig().update_from_dict(made.to_dict())
    again.validate()
    for key in ("lr", "critic_lr", "order", "team_reward", "num_epochs", "minibatch_size"):
        assert getattr(again, key) == getattr(made, key)


@pytest.mark.parametrize(
    "written, meant",
    [("clip_parm", "clip_param"), ("critic_lrr", "critic_lr"), ("entropy_coef", "entropy_coeff")],
)
def test_a_misspelt_key_is_told_the_nearest(written: str, meant: str) -> None:
    with pytest.raises(TypeError, match=rf"HAPPOConfig.*takes no '{written}'. Did you mean `{meant}`\?"):
        HAPPOConfig().training(**{written: 0.2})


@pytest.mark.parametrize("key", ["enable_rl_module_and_learner", "enable_env_runner_and_connector_v2"])
def test_the_old_api_stack_is_refused_with_what_to_remove(key: str) -> None:
    old = config().api_stack(**{key: False})
    with pytest.raises(ValueError, match=rf"remove `.api_stack\({key}=False\)`"):
        old.validate()
