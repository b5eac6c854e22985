"""Updates that are not finite, from the sampler to the end of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_envs import ScriptedMultiAgentEnv
from gymnasium.spaces import Box, Discrete
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.tune.registry import register_env

from rllib_haml import HAPPO, HAMLConfig, HAPPOConfig
from rllib_haml.algorithms.skip_watch import NonFiniteUpdates
from rllib_haml.haml import ClipDrift, Move
from rllib_haml.sampling.faults import EnvironmentFault


class SpoiltDrift(ClipDrift):
    """The clip drift, NaN from its `after`-th call on; an update calls it `num_epochs` + 1 times."""

    def __init__(self, after: int):
        super().__init__(0.2)
        object.__setattr__(self, "calls", iter(range(10**9)))
        object.__setattr__(self, "after", after)

    def __call__(self, move: Move) -> torch.Tensor:
        cost = super().__call__(move)
        return cost * float("nan") if next(self.calls) >= self.after else cost  # type: ignore[attr-defined]


def config(num_learners: int = 0, **training: Any) -> HAMLConfig:
    return (
        HAPPOConfig()
        .environment("matrix_game", env_config={"game": "climbing"})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .learners(num_learners=num_learners)
        .training(train_batch_size_per_learner=32, num_epochs=2, minibatch_size=16, **training)
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .debugging(seed=1)
    )


def poison(learner: Any) -> None:
    """NaN in one gradient, on one of the learners alone."""
    if torch.distributed.is_initialized() and torch.distributed.get_rank() == 0:
        return
    parameter = learner.module["agent_0"].network[0].weight
    learner.poison = parameter.register_hook(lambda gradient: gradient * float("nan"))


def weights(algo: Any) -> list[dict[str, np.ndarray]]:
    """Of each learner."""

    def of(learner: Any) -> dict[str, np.ndarray]:
        return {
            f"{name}/{key}": value.detach().numpy().copy()
            for name, module in learner.module.items()
            for key, value in module.state_dict().items()
        }

    return [answer.get() for answer in algo.learner_group.foreach_learner(of)]


def modules_moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    return {key.split("/")[0] for key in before if not np.array_equal(before[key], after[key])}


@pytest.mark.parametrize("num_learners", [0, 2])
def test_a_run_ends_after_so_many_with_the_last_good_weights_saved(
    num_learners: int, stopping: list[Any], ray_cluster: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """With two learners one of them is poisoned: both skip, and stay alike bit for bit."""
    algo = config(num_learners, max_consecutive_nonfinite_updates=2).build_algo()
    stopping.append(algo)
    algo.train()
    [before, *_] = weights(algo)
    algo.learner_group.foreach_learner(poison)
    result = algo.train()
    assert result["learners"]["agent_0"]["num_updates_skipped_lifetime"] == 1
    assert result["learners"]["agent_1"]["num_updates_skipped_lifetime"] == 0
    assert (
        "Policy agent_0, iteration 2: the gradient of agent_0.network.0.weight is not finite" in caplog.text
    )
    for after in weights(algo):
        assert modules_moved(before, after) == {"agent_1", "critic"}
    assert algo.train()["learners"]["agent_0"]["num_updates_skipped_in_a_row"] == 2
    with pytest.raises(NonFiniteUpdates) as caught:
        algo.train()
    message = str(caught.value)
    path = message.partition("The last good weights are in ")[2].partition(". Lower")[0]
    assert "Policy agent_0, iteration 3: the gradient of agent_0.network.0.weight" in message
    assert f"rllib train ... --restore {path}" in message
    ended = weights(algo)
    assert all(modules_moved(ended[0], each) == set() for each in ended)
    stopping.pop().stop()

    again = HAPPO.from_checkpoint(path)
    stopping.append(again)
    assert modules_moved(ended[0], weights(again)[0]) == set()
    result = again.train()
    assert modules_moved(ended[0], weights(again)[0]) == {"agent_0", "agent_1", "critic"}
    assert result["learners"]["agent_0"]["num_updates_skipped_lifetime"] == 2
    assert result["training_iteration"] == 4


def test_tune_keeps_the_last_good_weights_among_the_checkpoints(
    stopping: list[Any], ray_cluster: Any, tmp_path: Path
) -> None:
    """No checkpoint was asked for; the one before the end is there, finite, and trains on."""
    settings = config(
        max_consecutive_nonfinite_updates=2,
        drift={"type": "test_nonfinite_updates:SpoiltDrift", "after": 3 * 5},
    )
    results = tune.Tuner(
        "HAPPO",
        param_space=settings,
        run_config=tune.RunConfig(
            storage_path=str(tmp_path), name="run", stop={"training_iteration": 9}, verbose=0
        ),
    ).fit()
    [result] = results
    assert result.metrics["training_iteration"] == 5
    assert result.error is not None
    message = str(result.error)
    for part in ("NonFiniteUpdates", "Policy agent_0, iteration 5: the loss is not finite", str(result.path)):
        assert part in message
    assert result.checkpoint is not None
    assert f"--restore {result.checkpoint.path}" in message
    algo = HAPPO.from_checkpoint(result.checkpoint.path)
    stopping.append(algo)
    assert algo.iteration == 5
    assert all(np.isfinite(value).all() for value in weights(algo)[0].values())
    algo.train()


class Stateful(MultiAgentEnv):
    """Its state is NaN after the second step."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.possible_agents = self.agents = ["ann", "bob"]
        self.observation_spaces = {a: Box(-1, 1, (1,), np.float32) for a in self.agents}
        self.action_spaces = {a: Discrete(2) for a in self.agents}
        self.state_space = Box(-1, 1, (2,), np.float32)

    def state(self) -> np.ndarray:
        return np.array([0.0, np.nan if self.time == 2 else 0.0], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.time = 0
        return self._look()

    def step(self, action_dict: dict[Any, Any]) -> Any:
        self.time += 1
        obs, infos = self._look()
        return obs, dict.fromkeys(obs, 1.0), {"__all__": False}, {"__all__": self.time == 5}, infos

    def _look(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        obs = {agent: np.zeros(1, np.float32) for agent in self.agents}
        return obs, {agent: {"state": self.state()} for agent in self.agents}


class Watch(RLlibCallback):
    """Its presence makes RLlib's own env runner sample."""

    def on_episode_start(self, **kwargs: Any) -> None:
        pass


@pytest.mark.parametrize("callbacks", [None, Watch], ids=["own sampler", "RLlib's sampler"])
@pytest.mark.parametrize(
    "script, words",
    [
        ({"nan_obs": ("carrier", 3)}, r"step 3 .*agent 'carrier'.*observation\[1\] is nan"),
        ({"nan_reward": ("anchor", 2)}, r"step [12] .*agent 'anchor'.*reward is nan"),
    ],
)
def test_what_the_environment_gave_is_named_whoever_samples(
    script: dict[str, Any], words: str, callbacks: Any, stopping: list[Any], ray_cluster: Any
) -> None:
    register_env("spoilt", lambda env_config: ScriptedMultiAgentEnv(equal_rewards=True, **script))
    settings = config().environment("spoilt", env_config={})
    settings.env_runners(batch_mode="complete_episodes")
    if callbacks:
        settings.callbacks(callbacks)
    algo = settings.build_algo()
    stopping.append(algo)
    with pytest.raises(EnvironmentFault, match=words):
        algo.train()


@pytest.mark.parametrize("callbacks", [None, Watch], ids=["own sampler", "RLlib's sampler"])
def test_a_state_that_is_not_finite_is_named(callbacks: Any, stopping: list[Any], ray_cluster: Any) -> None:
    settings = config().environment(Stateful, env_config={})
    if callbacks:
        settings.callbacks(callbacks)
    algo = settings.build_algo()
    stopping.append(algo)
    with pytest.raises(EnvironmentFault, match=r"step 2 of its episode.*state\[1\] is nan"):
        algo.train()
