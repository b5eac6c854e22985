"""Recurrent policies end to end: what they can learn, and that sampler and learner see the same states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tree
from fake_envs import MemoryGame, ScriptedMultiAgentEnv
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.tune.registry import register_env

from rllib_haml import HAPPO, HAPPOConfig
from rllib_haml.algorithms import haml
from rllib_haml.sampling.joint_env_runner import JointEnvRunner

KINDS = ["use_gru", "use_lstm"]
CHANCE = 0.5


def memory_game(**model: Any) -> HAPPOConfig:
    return (
        HAPPOConfig()
        .environment(MemoryGame)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=16)
        .training(train_batch_size_per_learner=512, lr=5e-3, critic_lr=5e-3, num_epochs=10)
        .rl_module(model_config={"fcnet_hiddens": [16], "lstm_cell_size": 16} | model)
        .debugging(seed=0)
    )


def best_return(config: HAPPOConfig, iterations: int, enough: float = 1.0) -> float:
    algo, best = config.build_algo(), 0.0
    for _ in range(iterations):
        best = max(best, algo.train()["env_runners"].get("team_return_mean", 0.0))
        if best >= enough:
            break
    algo.stop()
    return best


@pytest.mark.parametrize("kind", KINDS)
def test_policies_with_memory_solve_a_game_of_memory(ray_cluster: Any, kind: str) -> None:
    assert best_return(memory_game(**{kind: True}), iterations=80, enough=0.95) >= 0.95


def test_control_policies_without_memory_stay_at_chance(ray_cluster: Any) -> None:
    assert best_return(memory_game(), iterations=30) < CHANCE + 0.15


def scripted(**settings: Any) -> Any:
    """Episodes of 7 steps in fragments of 10, with agents that die, join late or skip a step."""
    register_env("scripted", lambda env_config: ScriptedMultiAgentEnv(**env_config))
    script = {"length": 7, "equal_rewards": True, "deaths": {"carrier": 4}, "joins": {"anchor": 2}}
    return (
        HAPPOConfig()
        .environment("scripted", env_config=script | settings.pop("script", {}))
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(**{"train_batch_size_per_learner": 20, "minibatch_size": 8, "lr": 1e-3} | settings)
        .rl_module(
            model_config={
                "fcnet_hiddens": [8],
                "lstm_cell_size": 8,
                "max_seq_len": 3,
                "head_gain": 1.0,
                "use_lstm": True,
            }
        )
        .debugging(seed=1)
    )


def gaps(config: Any, iterations: int = 4) -> list[float]:
    """The largest |log-probability of the learner - of the sampler|, in each iteration."""
    algo = config.build_algo()
    found = []
    for _ in range(iterations):
        learners = algo.train()["learners"]
        found.append(max(float(x["behaviour_gap"]) for x in learners.values() if "behaviour_gap" in x))
    algo.stop()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_learner_and_sampler_agree_on_every_row(ray_cluster: Any, kind: str) -> None:
    config = scripted(script={"skips": {"scout": (3,)}})
    model = {**config.model_config, "use_lstm": False} | {kind: True}
    assert max(gaps(config.rl_module(model_config=model))) < 1e-4


def test_control_without_the_recorded_states_they_do_not(
    ray_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    reunited = haml.reunited
    monkeypatch.setattr(
        haml, "reunited", lambda made: [dataclasses.replace(f, actor_state={}) for f in reunited(made)]
    )
    assert max(gaps(scripted())) > 1e-3


def test_agents_may_share_a_recurrent_policy(ray_cluster: Any) -> None:
    config = memory_game(use_gru=True, head_gain=1.0).multi_agent(
        policy_mapping_fn=lambda agent, *a, **k: "both"
    )
    config.training(train_batch_size_per_learner=16 * 7, minibatch_size=50, num_epochs=2)
    assert max(gaps(config)) < 1e-4


def test_several_rounds_of_sampling_make_one_batch(ray_cluster: Any) -> None:
    config = scripted().env_runners(rollout_fragment_length=5)
    config.training(train_batch_size_per_learner=30)
    assert max(gaps(config)) < 1e-4


class Callback(RLlibCallback):
    """What only RLlib's own env runner can serve."""

    def on_episode_end(self, **kwargs: Any) -> None:
        """Nothing."""


def test_rllibs_env_runner_gives_the_states_too(ray_cluster: Any) -> None:
    config = scripted(script={"joins": {}}).callbacks(Callback)
    config.validate()
    assert config.env_runner_cls is MultiAgentEnvRunner
    assert max(gaps(config)) < 1e-4


@pytest.mark.parametrize("callback", [None, Callback])
def test_a_recurrent_rlmodule_of_rllibs_ppo_works_as_an_actor(ray_cluster: Any, callback: Any) -> None:
    config = scripted(script={"joins": {}}).rl_module(
        rl_module_spec=RLModuleSpec(module_class=DefaultPPOTorchRLModule),
        model_config={"use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 4},
    )
    if callback is not None:
        config.callbacks(callback)
    config.validate()
    assert (config.env_runner_cls is JointEnvRunner) == (callback is None)
    assert max(gaps(config)) < 1e-4


def test_sequences_of_different_lengths_are_refused(ray_cluster: Any) -> None:
    config = scripted()
    config.validate()
    specs = config.get_multi_rl_module_spec()
    specs.rl_module_specs["scout"].model_config = {**config.model_config, "max_seq_len": 4}
    specs.remove_modules("critic")
    with pytest.raises(ValueError, match="max_seq_len differs"):
        config.rl_module(rl_module_spec=specs).build_algo()


@pytest.mark.parametrize("kind", KINDS)
def test_resume_in_mid_episode_is_bit_exact(ray_cluster: Any, kind: str, tmp_path: Path) -> None:
    """Seven steps of episodes of five: every checkpoint lies within one; the critic remembers too."""
    config = memory_game(head_gain=1.0, max_seq_len=3, **{kind: True})
    config.training(train_batch_size_per_learner=16 * 7, num_epochs=2, minibatch_size=50)
    straight = config.build_algo()
    for _ in range(2):
        straight.train()
    straight.save_to_path(tmp_path)
    assert set(straight.env_runner._episodes.steps.tolist()) == {4}
    expected = after_three_more(straight)
    found = after_three_more(HAPPO.from_checkpoint(tmp_path))
    for (path, value), (_, other) in zip(expected, found, strict=True):
        np.testing.assert_array_equal(value, other, err_msg=str(path))

    def actors_forget(algo: Any) -> None:
        algo.env_runner._actor_states.restart(list(range(16)))

    def critic_forgets(algo: Any) -> None:
        algo.learner_group._learner._critics["critic"].memory._known.clear()

    for forget in (actors_forget, critic_forgets):
        control = HAPPO.from_checkpoint(tmp_path)
        forget(control)
        others = after_three_more(control)
        assert any((x != y).any() for (_, x), (_, y) in zip(expected, others, strict=True)), forget.__name__


def after_three_more(algo: Any) -> list[tuple[Any, np.ndarray]]:
    """Trains on; returns all weights and the actors' recurrent states."""
    for _ in range(3):
        algo.train()
    modules = algo.learner_group._learner.module
    weights = {name: {k: v.numpy() for k, v in m.state_dict().items()} for name, m in modules.items()}
    states = algo.env_runner._actor_states.now
    algo.stop()
    return tree.flatten_with_path([weights, states])
