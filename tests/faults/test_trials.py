"""A trial that fails or hangs goes on from its last checkpoint by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from faulty_envs import Faulty
from ray import tune
from ray.tune import Callback, Tuner

from rllib_haml import HAPPOConfig


class Saboteur(Callback):
    """After iterations 2 and 4 an order to fail, once each; keeps the book of iterations."""

    def __init__(self, orders: Path):
        self.orders = orders
        self.faults = {2: "raise", 4: "stall"}
        self.iterations: list[int] = []
        self.failures: list[int] = []

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        self.iterations.append(result["training_iteration"])
        self.failures.append(trial.num_failures)
        fault = self.faults.pop(result["training_iteration"], None)
        if fault:
            (self.orders / fault).touch()


def test_a_trial_that_raises_and_one_that_hangs_go_on_from_their_checkpoints(
    ray_cluster: None, tmp_path: Path
) -> None:
    orders = tmp_path / "orders"
    orders.mkdir()
    config = (
        HAPPOConfig()
        .environment(Faulty, env_config={"orders": str(orders)})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=100, num_epochs=1, critic_num_epochs=1)
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .fault_tolerance(env_step_timeout_s=2.0)
        .debugging(seed=3)
    )
    saboteur = Saboteur(orders)
    results = Tuner(
        "HAPPO",
        param_space=config.to_dict(),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "results"),
            stop={"training_iteration": 6},
            verbose=0,
            callbacks=[saboteur],
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            failure_config=tune.FailureConfig(max_failures=2),
        ),
    ).fit()
    assert not results.errors
    assert not list(orders.iterdir()), "both orders were taken"
    assert saboteur.failures[-1] == 2
    assert saboteur.iterations[-1] == 6
    assert saboteur.iterations.count(1) == 1, "none began from the start"
    steps = results[0].metrics["env_runners"]["num_env_steps_sampled_lifetime"]  # type: ignore[index]
    assert steps == 600, "the counter is that of what was trained on"
