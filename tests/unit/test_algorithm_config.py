"""The config takes what PPO's takes, refuses by name what it cannot mean, and finds the team by itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_envs import NAMES, ScriptedMultiAgentEnv, ScriptedParallelEnv
from gymnasium import spaces
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule, MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.rllib.policy.policy import PolicySpec
from ray.tune.registry import register_env

import rllib_haml
from rllib_haml import HAPPO, HAMLConfig, HAPPOConfig, MAPPOConfig
from rllib_haml.algorithms import ppo_keys, theory
from rllib_haml.algorithms.sampler_choice import EPISODE_CALLBACKS, why_stock
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
from rllib_haml.modules.actor import Actor
from rllib_haml.modules.critic import CRITIC, Critic
from rllib_haml.modules.team import TeamModule
from rllib_haml.sampling.joint_env_runner import JointEnvRunner


def config(kind: Any = HAPPOConfig, env: Any = "scripted_team", **env_config: Any) -> Any:
    register_env("scripted_team", lambda given: ScriptedMultiAgentEnv(**given))
    return kind().environment(env, env_config={"equal_rewards": True, **env_config})


# Each key of PPO has one fate.


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


def test_the_refusals_suggest_what_exists() -> None:
    """Control on the messages: the replacements that they name are keys that the config takes."""
    config().training(
        entropy_coeff=[[0, 0.01], [1000000, 0.0]],
        lr=[[0, 0.01], [1000000, 0.0]],
        critic_lr=1e-3,
        adam_epsilon=1e-6,
        weight_decay=0.1,
        num_epochs=3,
        lambda_=1.0,
        minibatch_size=None,
        clip_param=0.1,
    ).env_runners(max_requests_in_flight_per_env_runner=2).rl_module(
        model_config={"fcnet_hiddens": [3]}
    ).validate()


def test_an_unknown_key_is_an_error() -> None:
    with pytest.raises(TypeError, match="critic_lrr"):
        config().training(critic_lrr=1e-3)


# The config takes what PPO's takes.


class Silent(RLlibCallback):
    def on_train_result(self, **kwargs: Any) -> None:
        pass


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


# The team.


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


# The environment.

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


# What an instance is composed of.


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
        ("update_scheme", "parallel", "sequential, simultaneous"),
        ("team_reward", "max", "shared, mean, sum"),
    ],
)
def test_a_wrong_choice_names_the_right_ones(key: str, value: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"{key}='{value}'.*{expected}"):
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
    assert (clipped.compound_clip, clipped.preceding_agent_correction) == (0.1, True)
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


@pytest.mark.parametrize("key", ["lr", "num_epochs", "minibatch_size"])
def test_hatrpo_refuses_what_its_step_does_not_read(key: str) -> None:
    with pytest.raises(ValueError, match=f"HATRPO does not take {key}=7: .*kl_ball, radius"):
        rllib_haml.HATRPOConfig().training(**{key: 7})
    rllib_haml.HATRPOConfig().training(critic_lr=1e-3, critic_num_epochs=7)


# Which env runner samples.


class Watcher(RLlibCallback):
    def on_episode_end(self, **kwargs: Any) -> None:
        pass


class OwnRunner(MultiAgentEnvRunner):
    pass


class OwnTeam(MultiRLModule):
    pass


def chosen(made: Any) -> type:
    made.validate()
    return made.env_runner_cls


def test_the_fast_sampler_is_the_default() -> None:
    assert chosen(config()) is JointEnvRunner
    assert chosen(config().callbacks(Silent)) is JointEnvRunner
    assert chosen(config().callbacks(on_train_result=lambda **_: None)) is JointEnvRunner
    assert chosen(config().env_runners(env_runner_cls=OwnRunner)) is OwnRunner


SPEC = MultiRLModuleSpec(
    multi_rl_module_class=OwnTeam, rl_module_specs={name: RLModuleSpec(module_class=Actor) for name in NAMES}
)
REASONS: dict[str, tuple[str, dict[str, Any]]] = {
    "env_to_module_connector": ("env_runners", {"env_to_module_connector": lambda *_, **__: []}),
    "module_to_env_connector": ("env_runners", {"module_to_env_connector": lambda *_, **__: []}),
    "add_default_connectors_to_module_to_env_pipeline": (
        "env_runners",
        {"add_default_connectors_to_module_to_env_pipeline": False},
    ),
    "count_steps_by": ("multi_agent", {"count_steps_by": "agent_steps"}),
    "MultiRLModule": ("rl_module", {"rl_module_spec": SPEC}),
    "on_episode_end": ("callbacks", {"callbacks_class": Watcher}),
    "the callback on_episode_end": ("callbacks", {"callbacks_class": [Silent, Watcher]}),
}
REASONS |= {
    name: ("callbacks", {name: lambda **_: None}) for name in EPISODE_CALLBACKS if name != "on_episode_end"
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_needs_episodes_gets_rllibs_own_runner(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    method, arguments = REASONS[reason]
    made = getattr(config(), method)(**arguments)
    assert reason in (why_stock(made) or "")
    with caplog.at_level("WARNING", logger="rllib_haml"):
        assert chosen(made) is MultiAgentEnvRunner
    assert any(reason in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("wrong", [{"critic_lr": -1.0}, {"huber_delta": -0.1}, {"critic_num_epochs": -1}])
def test_numbers_out_of_range_are_refused_in_python_too(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HAPPOConfig().training(**wrong).validate()


def test_the_env_runner_is_chosen_anew_when_its_reason_is_gone() -> None:
    config = HAPPOConfig().environment("matrix_game", env_config={"game": "climbing"})
    config.multi_agent(count_steps_by="agent_steps")
    config.validate()
    assert config.env_runner_cls is MultiAgentEnvRunner
    config.multi_agent(count_steps_by="env_steps")
    config.validate()
    assert config.env_runner_cls is JointEnvRunner
