"""Checkpoints of algorithms: whole, checked, and independent of how many learners and samplers there are."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pyarrow import fs
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint
from test_nonfinite_updates import config, modules_moved, weights

from rllib_haml import HAPPO, MAPPO, HAMLConfig, HAPPOConfig, HATRPOConfig
from rllib_haml.checkpoints.manifest import MANIFEST
from rllib_haml.checkpoints.read import CheckpointError
from rllib_haml.cli.app import rllib
from rllib_haml.learners.on_policy import OnPolicyTeamLearner


@pytest.fixture(scope="module")
def saved(ray_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A checkpoint after two iterations, and its weights."""
    path = tmp_path_factory.mktemp("run") / "checkpoint_000001"
    algo = config().build_algo()
    for _ in range(2):
        algo.train()
    algo.save_to_path(path)
    found = weights(algo)[0]
    algo.stop()
    return path, found


def test_it_moves_between_numbers_of_learners_and_env_runners(
    saved: Any, stopping: list[Any], tmp_path: Path
) -> None:
    """0 learners → 1 and an env runner → 2 → 0: weights and counters are the same each time."""
    path, before = saved
    steps = 2 * 32
    for learners, env_runners in ((1, 1), (2, 0), (0, 0)):
        settings = config(num_learners=learners).env_runners(num_env_runners=env_runners)
        algo = HAPPO.from_checkpoint(path, config=settings)
        stopping.append(algo)
        assert all(modules_moved(before, held) == set() for held in weights(algo))
        result = algo.train()
        steps += 32 * max(1, learners)
        assert result["env_runners"]["num_env_steps_sampled_lifetime"] == steps
        first, *others = weights(algo)
        assert modules_moved(before, first) == {"agent_0", "agent_1", "critic"}
        assert all(modules_moved(first, other) == set() for other in others)
        path, before = tmp_path / str(learners), first
        algo.save_to_path(path)
        stopping.pop().stop()
    assert result["training_iteration"] == 5


class NoDisk(OnPolicyTeamLearner):
    """A learner on a node whose disk is full."""

    def save_to_path(self, *args: Any, **kwargs: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_learner_that_could_not_write_is_noticed(
    ray_cluster: Any, stopping: list[Any], tmp_path: Path
) -> None:
    """RLlib alone would leave a checkpoint without weights, and say nothing: the control."""

    def build() -> Any:
        stopping.append(config(num_learners=1, learner_class=NoDisk).build_algo())
        return stopping[-1]

    with pytest.raises(OSError, match="learners did not write their part"):
        build().save_to_path(tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []
    stopping.pop().stop()
    Algorithm.save_to_path(build(), str(tmp_path / "stock"))
    assert not (tmp_path / "stock" / "learner_group" / "learner").exists()


def test_a_killed_run_goes_on_although_the_checkpoint_that_tune_noted_is_gone(
    saved: Any, stopping: list[Any], tmp_path: Path
) -> None:
    """Tune's note is a second old; since then it may have deleted that one, and be writing another."""
    path, before = saved
    shutil.copytree(path, tmp_path / "checkpoint_000007")
    shutil.copytree(path, tmp_path / "checkpoint_000008")
    (tmp_path / "checkpoint_000008" / "algorithm_state.pkl").write_bytes(b"cut off")
    algo = config().build_algo()
    stopping.append(algo)
    assert modules_moved(before, weights(algo)[0])
    noted = Checkpoint(str(tmp_path / "checkpoint_000005"))
    with pytest.raises(ValueError, match="does not exist"):
        algo.restore(noted)  # a user's own choice is not replaced
    algo.restore(_TrainingResult(noted, {"training_iteration": 1}))
    assert modules_moved(before, weights(algo)[0]) == set()
    assert algo.training_iteration == 2, "that of the checkpoint, not of the note"
    (tmp_path / "checkpoint_000007" / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match="No intact checkpoint"):
        algo.restore(_TrainingResult(noted, {"training_iteration": 1}))


def test_another_file_system(saved: Any, stopping: list[Any], tmp_path: Path) -> None:
    path, before = saved
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    algo = HAPPO.from_checkpoint(path)
    stopping.append(algo)
    assert algo.save_to_path("bucket/checkpoint", filesystem=store) == "bucket/checkpoint"
    algo.train()
    algo.restore_from_path("bucket/checkpoint", filesystem=store)
    assert modules_moved(before, weights(algo)[0]) == set()
    algo.restore_from_path(path.as_uri())
    again = HAPPO.from_checkpoint("bucket/checkpoint", filesystem=store)
    stopping.append(again)
    assert modules_moved(before, weights(again)[0]) == set()


def test_tune_on_another_file_system(ray_cluster: Any, stopping: list[Any], tmp_path: Path) -> None:
    """Tune uploads what was written here; a run goes on from what it downloads."""
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    [result] = tune.Tuner(
        "HAPPO",
        param_space=config(),
        run_config=tune.RunConfig(
            storage_path="bucket",
            storage_filesystem=store,
            name="run",
            stop={"training_iteration": 2},
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            verbose=0,
        ),
    ).fit()
    assert result.error is None
    assert next(tmp_path.rglob(MANIFEST)).is_relative_to(tmp_path / "bucket" / "run")
    algo = HAPPO.from_checkpoint(result.checkpoint)
    stopping.append(algo)
    assert algo.train()["training_iteration"] == 3


def test_a_part_of_a_checkpoint(saved: Any, stopping: list[Any]) -> None:
    path, before = saved
    algo = config().build_algo()
    stopping.append(algo)
    of = "learner_group/learner/rl_module/agent_0"
    algo.restore_from_path(path / of, component=of)
    assert modules_moved(before, weights(algo)[0]) == {"agent_1", "critic"}


def game(of: type, **env: Any) -> HAMLConfig:
    settings = of().environment("matrix_game", env_config={"game": "climbing"} | env)
    return settings.env_runners(num_envs_per_env_runner=1).rl_module(model_config={"fcnet_hiddens": [8]})


FOREIGN = {
    "algorithm": (game(HATRPOConfig), r"is HAPPO's, this is HATRPO.*HAPPO\.from_checkpoint"),
    "agents": (
        game(HAPPOConfig, game="sharing_trap", n=4),
        r"of the agents \['agent_0', 'agent_1'\], this team's are",
    ),
    "spaces": (
        game(HAPPOConfig, game="anti_coordination"),
        r"does not fit: action_space of agent 'agent_0' was Discrete",
    ),
    "policies": (
        game(HAPPOConfig).multi_agent(
            policies=["both"], policy_mapping_fn=lambda agent, *args, **kwargs: "both"
        ),
        r"does not fit: policy of agent 'agent_0' was agent_0, and is both",
    ),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_checkpoint_is_refused_by_name(what: str, saved: Any, stopping: list[Any]) -> None:
    """And leaves the running algorithm as it was."""
    settings, words = FOREIGN[what]
    algo = settings.build_algo()
    stopping.append(algo)
    before = weights(algo)[0]
    with pytest.raises(CheckpointError, match=words):
        algo.restore_from_path(saved[0])
    assert modules_moved(before, weights(algo)[0]) == set()


def test_another_algorithms_class_does_not_load_it(saved: Any) -> None:
    with pytest.raises(
        CheckpointError, match=r"is HAPPO's: load it with HAPPO\.from_checkpoint, not MAPPO's"
    ):
        MAPPO.from_checkpoint(saved[0])


def test_stock_rllibs_checkpoint_is_refused_and_played(
    saved: Any, stopping: list[Any], tmp_path: Path
) -> None:
    stock = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=0).build_algo()
    stopping.append(stock)
    stock.save_to_path(str(tmp_path / "stock"))
    algo = config().build_algo()
    stopping.append(algo)
    with pytest.raises(CheckpointError, match=r"RLlib's PPO, not of this package.*PPO\.from_checkpoint"):
        algo.restore_from_path(tmp_path / "stock")


def test_damage_is_found_before_anything_is_loaded(saved: Any, stopping: list[Any], tmp_path: Path) -> None:
    """By `from_checkpoint`, `restore_from_path`, `rllib evaluate` and `--restore` alike."""
    run = tmp_path / "run"
    for name in ("checkpoint_000001", "checkpoint_000002"):
        shutil.copytree(saved[0], run / name)
    damaged = run / "checkpoint_000002"
    next((damaged / "learner_group").rglob("agent_0/module_state.pkl")).write_bytes(b"")
    words = (
        r"agent_0/module_state\.pkl has changed since it was written.*checkpoint_000001 beside it is intact"
    )
    algo = config().build_algo()
    stopping.append(algo)
    algo.train()
    before = weights(algo)[0]
    with pytest.raises(CheckpointError, match=words):
        HAPPO.from_checkpoint(damaged)
    with pytest.raises(CheckpointError, match=words):
        algo.restore_from_path(damaged)
    assert modules_moved(before, weights(algo)[0]) == set()
    assert algo.train()["num_env_steps_stale_lifetime"] == 0
    train = [
        "train",
        "--run",
        "HAPPO",
        "--env",
        "matrix_game",
        "--config",
        '{"env_config": {"game": "climbing"}}',
    ]
    for command in (["evaluate", str(damaged)], [*train, "--restore", str(damaged)]):
        result = CliRunner().invoke(rllib, command)
        assert result.exit_code == 2, result.output
        assert "module_state.pkl has changed since it was written" in result.output
        assert "checkpoint_000001 beside it is intact" in result.output
