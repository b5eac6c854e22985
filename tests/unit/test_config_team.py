"""The config finds the team, and its environment's own agents and spaces, by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_envs import NAMES, ScriptedMultiAgentEnv, ScriptedParallelEnv
from gymnasium import spaces
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.policy import PolicySpec
from team_configs import config

from rllib_haml import HAPPOConfig, MAPPOConfig
from rllib_haml.algorithms import theory
from rllib_haml.haml import (
    ClipDrift,
)
from rllib_haml.modules.actor import Actor
from rllib_haml.modules.critic import CRITIC, Critic
from rllib_haml.modules.team import TeamModule
from rllib_haml.sampling.joint_env_runner import JointEnvRunner


def test_policies_default_to_one_per_agent() -> None:
    made = config()
    made.validate()
    assert set(made.policies) == set(NAMES)
    assert made.team.agents == NAMES, "in the environment's order"
    assert {name: made.policy_mapping_fn(name, None) for name in NAMES} == {name: name for name in NAMES}
    assert made.is_multi_agent
    made.validate()
    assert set(made.policies) == set(NAMES), "validating again changes nothing"


def test_another_environment_brings_another_team() -> None:
    made = config()
    made.validate()
    made.environment(env_config={"agents": ("one", "two")}).validate()
    assert set(made.policies) == {"one", "two"}


def test_modules_are_actors_with_their_own_spaces_and_one_critic() -> None:
    made = config()
    made.validate()
    spec = made.get_multi_rl_module_spec()
    assert spec.multi_rl_module_class is TeamModule
    assert set(spec.rl_module_specs) == {*NAMES, CRITIC}
    env = ScriptedMultiAgentEnv()
    for name in NAMES:
        assert spec.rl_module_specs[name].module_class is Actor
        assert spec.rl_module_specs[name].action_space == env.action_spaces[name]
    assert spec.rl_module_specs[CRITIC].module_class is Critic
    everyone = sum(spaces.flatdim(env.observation_spaces[name]) + 1 for name in NAMES)
    assert spec.rl_module_specs[CRITIC].observation_space.shape == (everyone,)
    assert set(made.get_multi_rl_module_spec(inference_only=True).rl_module_specs) == set(NAMES)


def test_a_critic_keeps_its_networks_where_actors_are_the_users_own() -> None:
    own = RLModuleSpec(module_class=DefaultPPOTorchRLModule)
    made = config().rl_module(
        rl_module_spec=own, model_config={"fcnet_hiddens": [4], "fcnet_kernel_initializer": None}
    )
    made.validate()
    specs = made.get_multi_rl_module_spec().rl_module_specs
    assert all(specs[name].module_class is DefaultPPOTorchRLModule for name in NAMES)
    assert specs[CRITIC].model_config["fcnet_hiddens"] == [4]
    assert "fcnet_kernel_initializer" not in specs[CRITIC].model_config


class Twins(ScriptedParallelEnv):
    """Agents of equal spaces; made from keywords, as PettingZoo's own environments are."""

    def __init__(self, *, equal_rewards: bool, length: int = 5) -> None:
        super().__init__(equal_rewards=equal_rewards, length=length)

    def _look(self) -> dict[str, Any]:
        return {agent: obs[:3] for agent, obs in super()._look().items()}

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(-1e6, 1e6, (3,), np.float64)

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(2)


def test_agents_that_share_a_policy_need_equal_spaces() -> None:
    with pytest.raises(ValueError, match=r"share the policy 'shared' but have different spaces"):
        config(MAPPOConfig).training(share_parameters=True).validate()
    made = config(MAPPOConfig, Twins).training(share_parameters=True)
    made.validate()
    assert made.team.members() == {"shared": list(NAMES)}
    made = config(MAPPOConfig)
    made.validate()
    assert made.update_scheme == "simultaneous"
    assert set(made.policies) == set(NAMES), "control: separate ones are the default"


def test_shared_policies_that_move_in_sequence_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A simultaneous update never claimed the theorem."""
    theory._said.clear()
    for scheme, warnings in (("simultaneous", 0), ("sequential", 1), ("sequential", 1)):
        made = config(env=Twins).multi_agent(policy_mapping_fn=lambda *_, **__: "walkers")
        made.training(update_scheme=scheme).validate()
        said = [r.getMessage() for r in caplog.records if "move as one" in r.getMessage()]
        assert len(said) == warnings
    assert "'walkers': ['scout', 'carrier', 'anchor']" in said[0]
    assert "Leave `policies` and `policy_mapping_fn` unset" in said[0]


def test_a_mapping_to_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="other"):
        config().multi_agent(policies={"a", "b"}, policy_mapping_fn=lambda *_, **__: "other").validate()


def test_policies_alone_are_mapped_to_the_agents_of_their_names() -> None:
    made = config().multi_agent(policies=set(NAMES))
    made.validate()
    assert made.team.module_of == {name: name for name in NAMES}
    with pytest.raises(ValueError, match=r"`policies` are \['other'\]"):
        config().multi_agent(policies={"other"}).validate()


@pytest.mark.parametrize("policy", ["walkers", "default_policy"])
def test_a_mapping_alone_tells_the_policies(policy: str) -> None:
    made = config(env=Twins).multi_agent(policy_mapping_fn=lambda *_, **__: policy)
    made.validate()
    assert made.team.members() == {policy: list(NAMES)}
    assert set(made.policies) == {policy}


def test_policies_follow_an_environment_that_changes() -> None:
    made = config()
    made.validate()
    made.environment(env_config={"agents": NAMES[:2]}).validate()
    assert set(made.policies) == set(NAMES[:2])


@pytest.mark.parametrize(
    "multi_agent, message",
    [
        ({"algorithm_config_overrides_per_module": {"scuot": {"lr": 1e-3}}}, "names 'scuot'; there are"),
        (
            {"algorithm_config_overrides_per_module": {"scout": HAPPOConfig.overrides(gamma=0.5)}},
            "whole team",
        ),
        ({"policies": {a: PolicySpec(config={"lr": 1e-3}) for a in NAMES}}, "overrides_per_module"),
    ],
)
def test_what_would_be_ignored_of_a_single_policy_is_refused(
    multi_agent: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config().multi_agent(**multi_agent).validate()


def test_policies_and_critic_can_have_settings_of_their_own() -> None:
    own = {"scout": {"clip_param": 0.9, "lr": 1e-3}, CRITIC: {"grad_clip": 1.0, "critic_num_epochs": 9}}
    made = config().multi_agent(algorithm_config_overrides_per_module=own)
    made.validate()
    assert made.get_config_for_module("scout").make_drift() == ClipDrift(0.9)
    assert made.get_config_for_module("carrier").make_drift() == ClipDrift(0.2)
    assert made.get_config_for_module(CRITIC).critic_num_epochs == 9


@pytest.mark.parametrize("order", [[], ["scout", "carrier"], [*NAMES, "scout"], [*NAMES, "other"]])
def test_a_fixed_order_names_every_policy_once(order: list[str]) -> None:
    with pytest.raises(ValueError, match="each trained policy once"):
        config().training(order=order).validate()


def test_a_fixed_order_may_leave_out_who_is_not_trained() -> None:
    for order in (["carrier"], [*NAMES]):
        config().multi_agent(policies_to_train=["carrier"]).training(order=order).validate()


@pytest.mark.parametrize(
    "call",
    [
        lambda made: made.env_runners(observation_filter="MeanStdFilter"),
        lambda made: made.framework(torch_compile_learner=True),
    ],
)
def test_what_has_no_effect_is_refused(call: Any) -> None:
    with pytest.raises(ValueError, match="no effect"):
        call(config()).validate()


def test_the_batch_can_be_given_as_a_whole_or_per_learner() -> None:
    assert config().learners(num_learners=2).training(train_batch_size=600).total_train_batch_size == 600
    given = config().learners(num_learners=2).training(train_batch_size_per_learner=600)
    assert given.total_train_batch_size == 1200


def test_policies_to_train_are_kept() -> None:
    made = config().multi_agent(policies_to_train=["carrier"])
    made.validate()
    assert made.policies_to_train == ["carrier"]
    assert set(made.policies) == set(NAMES)


HERE = Path(__file__).stem


@pytest.mark.parametrize(
    "env",
    [
        "scripted_team",
        ScriptedMultiAgentEnv,
        Twins,
        "fake_envs.ScriptedMultiAgentEnv",
        "fake_envs:ScriptedParallelEnv",
        f"{HERE}:Twins",
    ],
    ids=str,
)
def test_the_fast_sampler_makes_every_environment_that_the_config_takes(env: Any) -> None:
    made = config(env=env).env_runners(num_env_runners=0, num_envs_per_env_runner=2)
    made.validate()
    runner = JointEnvRunner(config=made)
    fragments = runner.sample(num_timesteps=6)
    assert sum(map(len, fragments)) == 6
    assert {f.source for f in fragments} == {(0, 0), (0, 1)}
    runner.stop()
