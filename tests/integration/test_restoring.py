"""What is given with a checkpoint: settings, a seed; and what an algorithm plays once it was restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.tune.schedulers import PopulationBasedTraining

from rllib_haml import HAPPOConfig, LoRASAConfig
from rllib_haml.algorithms.haml import HAML

NO_LR = 1e-12
GAME = {"env": "matrix_game", "env_config": {"game": "climbing"}}
JOBS = [[["saw", 3], ["mill", 2]], [["mill", 2], ["saw", 1]], [["saw", 1], ["mill", 4]]]
SHOP = {"env": "job_shop", "env_config": {"plant": JOBS}}


def config(of: type = HAPPOConfig, seed: int | None = 0, env: Any = GAME, **training: Any) -> Any:
    return (
        of()
        .environment(**env)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=40, num_epochs=1, minibatch_size=20, lr=0.05, **training)
        .rl_module(model_config={"fcnet_hiddens": [8]})
        .debugging(seed=seed)
    )


def weights(module: Any) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in module.get_state().values()])


def after_an_update(algo: Any) -> tuple[Any, ...]:
    """What the team earned, and a policy's weights."""
    return algo.train()["env_runners"]["team_return_mean"], *weights(algo.get_module("agent_0")).tolist()


@pytest.fixture(scope="module")
def saved(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A checkpoint of seed 0, and the update that follows it."""
    path = tmp_path_factory.mktemp("run") / "checkpoint_000001"
    algo = config().build_algo()
    algo.train()
    algo.save_to_path(path)
    following = after_an_update(algo)
    algo.stop()
    return path, following


def restored(path: Path, settings: Any, stopping: list[Any]) -> Any:
    algo: Any = HAML.from_checkpoint(path, config=settings)
    stopping.append(algo)
    return algo


# Settings.


class Moved(RLlibCallback):
    """Reports how far an update moved agent_0's weights, from the checkpoint's on."""

    before: np.ndarray | None = None

    def on_checkpoint_loaded(self, *, algorithm: Any, **kwargs: Any) -> None:
        self.before = weights(algorithm.get_module("agent_0"))

    def on_train_result(self, *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
        now = weights(algorithm.get_module("agent_0"))
        result["moved"] = -1.0 if self.before is None else float(np.abs(now - self.before).max())
        # The population's best are those that were not given NO_LR.
        result["score"] = algorithm.config.lr
        self.before = now


def test_what_population_based_training_explores_counts_at_once(ray_cluster: Any, tmp_path: Path) -> None:
    """The worse of two trials takes over the other's weights, with an `lr` that moves nothing.

    Control: before that, and in the other trial, every update moves them.
    """
    population = PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        quantile_fraction=0.5,
        hyperparam_mutations={"lr": [0.05]},
        custom_explore_fn=lambda settings: settings | {"lr": NO_LR},
        synch=True,
    )
    results = tune.Tuner(
        "HAPPO",
        param_space=config().training(lr=tune.grid_search([0.05, 0.04])).callbacks(Moved),  # type: ignore[arg-type]
        tune_config=tune.TuneConfig(scheduler=population, metric="score", mode="max"),
        run_config=tune.RunConfig(storage_path=str(tmp_path), stop={"training_iteration": 3}, verbose=0),
    ).fit()
    assert not results.errors, results.errors
    rows = [row for result in results for _, row in result.metrics_dataframe.iterrows()]
    reported = "learners/agent_0/default_optimizer_learning_rate"
    explored = [row for row in rows if row["score"] == NO_LR]
    others = [row for row in rows if row["score"] != NO_LR and row["moved"] >= 0]
    assert explored
    assert len(others) == 3
    assert all(row["moved"] < 1e-9 and row[reported] == NO_LR for row in explored)
    assert all(row["moved"] > 1e-3 for row in others)


def test_a_running_algorithm_keeps_its_own_settings(saved: Any, stopping: list[Any]) -> None:
    """`restore_from_path` brings none. Control: under the checkpoint's, weights move."""
    moves = {}
    for lr in (0.05, NO_LR):
        algo = config().training(lr=lr).build_algo()
        stopping.append(algo)
        algo.restore_from_path(saved[0])
        before = weights(algo.get_module("agent_0"))
        result = algo.train()
        moves[lr] = np.abs(weights(algo.get_module("agent_0")) - before).max()
        assert result["learners"]["agent_0"]["default_optimizer_learning_rate"] == lr
    assert moves[0.05] > 1e-3
    assert moves[NO_LR] < 1e-9


# Seeds.


def test_a_given_seed_counts(saved: Any, stopping: list[Any], tmp_path: Path) -> None:
    """The checkpoint's own, and none, go on as if it had never stopped; once it counts, it goes on too."""
    path, following = saved
    found = {seed: after_an_update(restored(path, config(seed=seed), stopping)) for seed in (0, None, 1, 2)}
    assert found[0] == found[None] == following
    assert len(set(found.values())) == 3
    again = config(seed=1).build_algo()
    stopping.append(again)
    again.train()
    again.restore_from_path(path)
    assert after_an_update(again) == found[1], "whatever has been drawn before"
    again.save_to_path(tmp_path / "checkpoint")
    expected = after_an_update(again)
    assert after_an_update(restored(tmp_path / "checkpoint", config(seed=1), stopping)) == expected


def test_a_given_seed_counts_on_remote_env_runners(saved: Any, stopping: list[Any]) -> None:
    """Their generators are in no checkpoint: under its own seed they do not
    repeat what they began with."""

    def run(seed: int, path: Path | None = saved[0]) -> Any:
        settings = config(seed=seed).env_runners(num_env_runners=1)
        algo = restored(path, settings, stopping) if path else settings.build_algo()
        found = after_an_update(algo)
        draws = algo.env_runner_group.foreach_env_runner(
            lambda runner: (runner._seed, runner._generator.get_state().tolist()), local_env_runner=False
        )
        algo.stop()
        return found, draws

    zero, one, fresh = run(0), run(1), run(0, path=None)
    assert len({str(draws) for _, draws in (zero, one, fresh)}) == 3
    assert zero[0] != one[0]


# Evaluation.


@pytest.mark.parametrize(("of", "remote"), [(HAPPOConfig, 0), (HAPPOConfig, 1), (LoRASAConfig, 1)])
def test_evaluation_plays_the_restored_weights(
    of: type, remote: int, ray_cluster: Any, stopping: list[Any], tmp_path: Path
) -> None:
    """Control: before that it has played newer ones."""
    adapters: dict[str, Any] = {"lora": {"r": 1}, "adapters_from": 0} if of is LoRASAConfig else {}
    settings = config(of, env=SHOP, **adapters)
    settings.evaluation(evaluation_interval=100, evaluation_num_env_runners=remote, evaluation_duration=2)
    algo = settings.build_algo()
    stopping.append(algo)

    def played() -> dict[str, np.ndarray]:
        algo.evaluate()
        *_, found = algo.eval_env_runner_group.foreach_env_runner(
            lambda runner: {name: weights(module) for name, module in runner.module.items()}
        )
        return found

    algo.train()
    algo.save_to_path(tmp_path / "checkpoint")
    first = played()
    for _ in range(2):
        algo.train()
    newer = played()
    algo.restore_from_path(tmp_path / "checkpoint")
    again = played()
    assert {name for name in first if not np.array_equal(first[name], newer[name])} == {"saw", "mill"}
    assert all(np.array_equal(first[name], again[name]) for name in first)
