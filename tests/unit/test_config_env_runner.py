"""Which env runner samples, and why."""

from __future__ import annotations

from typing import Any

import pytest
from fake_envs import NAMES
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule, MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from team_configs import Silent, config

from rllib_haml import HAPPOConfig
from rllib_haml.algorithms.sampler_choice import EPISODE_CALLBACKS, why_stock
from rllib_haml.modules.actor import Actor
from rllib_haml.sampling.joint_env_runner import JointEnvRunner


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
