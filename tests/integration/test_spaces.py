"""Teams of every kind of action space, masked or not, sampled and trained by both samplers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.multi_agent_env_runner import MultiAgentEnvRunner
from ray.tune.registry import register_env
from spaces_env import ACTIONS, SpacesEnv, choices

from rllib_haml import HAPPOConfig
from rllib_haml.learners.connector import JointBatchConnector
from rllib_haml.learners.module_policy import ModulePolicy
from rllib_haml.modules.actor import ACTION_MASK
from rllib_haml.sampling.faults import EnvironmentFault
from rllib_haml.sampling.joint_env_runner import JointEnvRunner

MASKED = [name for name, space in ACTIONS.items() if choices(space)]


class NeedsEpisodes(RLlibCallback):
    """A callback that only RLlib's own env runner can serve."""

    def on_episode_end(self, **kwargs: Any) -> None:
        pass


def team(stock: bool = False, model: dict[str, Any] | None = None, **env_config: Any) -> Any:
    register_env("spaces", lambda config: SpacesEnv(**config))
    config = (
        HAPPOConfig()
        # RLlib's check plays forbidden actions.
        .environment("spaces", env_config=env_config, disable_env_checking=True)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=40, num_epochs=2, critic_num_epochs=2, minibatch_size=16)
        .rl_module(model_config={"fcnet_hiddens": [8], "head_gain": 1.0, **(model or {})})
        .debugging(seed=1)
    )
    return config.callbacks(NeedsEpisodes) if stock else config


@pytest.mark.parametrize("stock", [False, True], ids=["fast", "stock"])
@pytest.mark.parametrize("squash", [False, True], ids=["gaussian", "squashed"])
@pytest.mark.parametrize("masks", [None, "obs"])
def test_a_team_of_all_kinds_of_actions_trains(
    ray_cluster: Any, stock: bool, squash: bool, masks: str | None
) -> None:
    """The environment raises on actions that are not in their space or that a mask forbids."""
    config = team(stock, {"squash_actions": squash}, masks=masks, skips=True)
    config.env_runners(batch_mode="complete_episodes")
    algo = config.build_algo()
    assert algo.config.env_runner_cls is (MultiAgentEnvRunner if stock else JointEnvRunner)
    for _ in range(2):
        learners = algo.train()["learners"]
        for agent in ACTIONS:
            assert float(learners[agent]["behaviour_gap"]) < 1e-4
            assert np.isfinite(float(learners[agent]["mean_kl"]))
    algo.stop()


@pytest.mark.parametrize("agent, action", [("box", [9.0, 0.0]), ("discrete", 4), ("multi discrete", [0, 2])])
def test_control_the_environment_refuses_what_is_not_in_its_spaces(agent: str, action: Any) -> None:
    env = SpacesEnv((agent,))
    env.reset()
    with pytest.raises(AssertionError, match="is not in"):
        env.step({agent: np.asarray(action)})


def test_control_the_environment_refuses_what_a_mask_forbids() -> None:
    env = SpacesEnv(("discrete",), masks="infos")
    _, infos = env.reset()
    forbidden = int(np.argmin(infos["discrete"]["action_mask"]))
    with pytest.raises(AssertionError, match="forbidden"):
        env.step({"discrete": forbidden})


@pytest.mark.parametrize("masks", ["obs", "infos"])
def test_masks_are_the_same_in_sampling_and_in_evaluation(masks: str) -> None:
    """The learner finds the sampler's log-probabilities; without the masks, and with others, it does not."""
    config = team(masks=masks, skips=True)
    config.validate()
    runner = JointEnvRunner(config=config)
    trained: Any = config.get_multi_rl_module_spec().build()
    for agent in ACTIONS:
        trained[agent].set_state(runner.module[agent].get_state())
    fragments = runner.sample(num_timesteps=60)
    connector = JointBatchConnector(config.team, "shared", "cpu", "spaces")
    columns = connector(rl_module=None, batch={}, episodes=fragments)
    assert {name for name in ACTIONS if ACTION_MASK in columns[name]} == set(MASKED)
    for agent in MASKED:
        assert gap(trained[agent], columns[agent]) < 1e-5
        free = torch.ones_like(columns[agent][ACTION_MASK])
        assert gap(trained[agent], columns[agent] | {ACTION_MASK: free}) > 0.1, "control"
        shifted = columns[agent][ACTION_MASK].roll(1, dims=-1)
        assert gap(trained[agent], columns[agent] | {ACTION_MASK: shifted}) > 1e3, "control"
    runner.stop()


def gap(module: Any, columns: dict[str, Any]) -> float:
    policy = ModulePolicy(module, columns, [], None)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        found = policy.evaluate(slice(None)).log_prob
    return float((found - columns[Columns.ACTION_LOGP].T)[policy.active].abs().max())


@pytest.mark.parametrize("stock", [False, True], ids=["fast", "stock"])
@pytest.mark.parametrize("agent", MASKED)
def test_a_mask_that_forbids_everything_is_a_fault_with_its_place(
    ray_cluster: Any, agent: str, stock: bool
) -> None:
    algo = team(stock, actions=(agent,), masks="obs", everything_forbidden=3).build_algo()
    with pytest.raises(EnvironmentFault, match="forbids every option") as caught:
        algo.train()
    assert (caught.value.agent, caught.value.step) == (agent, 3)
    if not stock:
        assert (caught.value.environment, caught.value.sub_env) == ("spaces", 0)
    algo.stop()


def test_after_the_last_step_a_mask_may_forbid_everything(ray_cluster: Any) -> None:
    algo = team(actions=("discrete",), masks="obs", everything_forbidden=6, length=6).build_algo()
    algo.train()
    algo.stop()


def test_one_forbidden_choice_among_several_is_enough() -> None:
    """Every part of an action needs an option of its own."""
    runner_config = team(actions=("tuple", "multi discrete"), masks="infos")
    runner_config.validate()
    check = JointEnvRunner(config=runner_config)._check_masks
    several = np.array([[1, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]], bool)
    assert check.forbid_everything("multi discrete", several).tolist() == [True, False, True]
    assert check.forbid_everything("tuple", several[:, :3]).tolist() == [False, False, True]


IMAGE = spaces.Box(0, 255, (9, 7, 3), np.uint8)
SCENE = spaces.Dict(
    {"picture": IMAGE, "speed": spaces.Box(-1, 1, (2,), np.float32), "gear": spaces.Discrete(3)}
)


@pytest.mark.parametrize("stock", [False, True], ids=["fast", "stock"])
@pytest.mark.parametrize("seen", [IMAGE, SCENE], ids=["image", "beside others"])
@pytest.mark.parametrize("model", [{}, {"use_gru": True, "lstm_cell_size": 8}], ids=["mlp", "gru"])
def test_a_team_that_sees_images_trains(
    ray_cluster: Any, seen: spaces.Space, stock: bool, model: dict[str, Any], tmp_path: Any
) -> None:
    who = ("discrete", "multi discrete", "box")
    algo = team(stock, model, actions=who, masks="obs", observations=seen).build_algo()
    for _ in range(2):
        learners = algo.train()["learners"]
    assert all(float(learners[agent]["behaviour_gap"]) < 1e-4 for agent in who)
    path = algo.save_to_path(tmp_path / "checkpoint")
    module = algo.learner_group._learner.module
    for agent in (*who, "critic"):
        loaded = RLModule.from_checkpoint(f"{path}/learner_group/learner/rl_module/{agent}")
        for name, value in module[agent].state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name])
    algo.stop()
