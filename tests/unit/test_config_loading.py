"""What a YAML file says is what the algorithm is configured with."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path

import pytest

from rllib_haml.cli.options import TrainOptions
from rllib_haml.config import Experiment, load_experiments
from rllib_haml.config.document import read_text
from rllib_haml.config.parse import parse_experiments


def load(tmp_path: Path, config: str, head: str = "") -> Experiment:
    """The experiment of a PPO file with these lines in it."""
    path = tmp_path / "x.yaml"
    lines = "".join(f"    {line}\n" for line in config.splitlines())
    path.write_text(f"team:\n  run: PPO\n  env: CartPole-v1\n{head}  config:\n{lines}")
    return load_experiments(path)[0]


@pytest.mark.parametrize(
    "written, value",
    [("5e-4", 5e-4), ("1e6", 1e6), ("-2.5E3", -2500.0), (".5e1", 5.0), ("5e", "5e"), ("1_000", 1000)],
)
def test_numbers_are_read_as_in_yaml_1_2(written: str, value: object):
    assert read_text(f"a: {written}", "x").data == {"a": value}


def test_old_names_are_translated_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = """\
num_workers: 3
num_sgd_iter: 7
sgd_minibatch_size: 10
train_batch_size: 600
num_learners: 2
num_gpus: 1
lambda: 0.9
framework: torch
model: {fcnet_hiddens: [8], post_fcnet_hiddens: [4], vf_share_layers: true}"""
    with caplog.at_level(logging.INFO, "rllib_haml"):
        loaded = load(tmp_path, config).config
    assert (loaded.num_env_runners, loaded.num_epochs, loaded.minibatch_size) == (3, 7, 10)
    # Totals of the old API stack are per learner on the new one.
    assert loaded.train_batch_size_per_learner == 300
    assert loaded.num_gpus_per_learner == 0.5
    assert loaded.lambda_ == 0.9
    assert loaded.model_config["head_fcnet_hiddens"] == [4]
    assert loaded.model_config["vf_share_layers"] is True
    messages = [record.getMessage() for record in caplog.records]
    for old in ("num_workers", "num_sgd_iter", "sgd_minibatch_size", "train_batch_size", "model"):
        assert sum(f"`{old}` is now" in message for message in messages) == 1


def test_old_stop_metrics_and_checkpoint_settings(tmp_path: Path):
    head = """\
  stop: {episode_reward_mean: 5, timesteps_total: 1e3, policy_reward_mean/a: 1, time_total_s: 9}
  checkpoint_freq: 5
  keep_checkpoints_num: 2
  checkpoint_score_attr: min-env_runners/episode_len_mean
  local_dir: /some/where
"""
    experiment = load(tmp_path, "num_env_runners: 0", head)
    assert experiment.stop == {
        "env_runners/episode_return_mean": 5,
        "num_env_steps_sampled_lifetime": 1000.0,
        "env_runners/module_episode_returns_mean/a": 1,
        "time_total_s": 9,
    }
    assert experiment.checkpoints == {
        "checkpoint_at_end": True,
        "checkpoint_frequency": 5,
        "num_to_keep": 2,
        "checkpoint_score_attribute": "env_runners/episode_len_mean",
        "checkpoint_score_order": "min",
    }
    assert experiment.storage_path == "/some/where"


@pytest.mark.parametrize(
    "said, every, kept",
    [
        ("", 25, 3),
        ("  keep_checkpoints_num: 7\n", 25, 7),
        ("  checkpoint_config: {num_to_keep: null}\n", 25, None),
        ("  checkpoint_at_end: false\n", 25, 3),
        ("  checkpoint_freq: 0\n", 0, 3),
        ("  checkpoint_freq: 5\n", 5, 3),
        ("  checkpoint_config: {checkpoint_frequency: 5}\n", 5, 3),
        ("  checkpoint_freq: 5\n  keep_checkpoints_num: null\n", 5, None),
    ],
)
def test_checkpoints_are_made_where_an_experiment_does_not_say(
    said: str, every: int, kept: int | str | None, tmp_path: Path
):
    checkpoints = load(tmp_path, "num_env_runners: 0", said).checkpoints
    assert checkpoints["checkpoint_frequency"] == every
    assert checkpoints["num_to_keep"] == kept


def test_policies_keep_their_order_and_imports_are_resolved(tmp_path: Path):
    config = """\
multiagent:
  policies: [b, a, c]
  policy_mapping_fn: os.path.basename
  policies_to_train: [a]
callbacks: ray.rllib.callbacks.callbacks.RLlibCallback"""
    loaded = load(tmp_path, config).config
    assert list(loaded.policies) == ["b", "a", "c"]
    assert loaded.policy_mapping_fn("x/y") == "y"
    assert loaded.policies_to_train == ["a"]
    assert loaded.callbacks_class.__name__ == "RLlibCallback"


def test_a_grid_is_one_trial_per_point_in_tunes_own_words(tmp_path: Path):
    config = """\
lr: {grid_search: [1e-3, 1e-4]}
model_config: {fcnet_hiddens: {grid_search: [[4], [8], [16]]}}"""
    experiment = load(tmp_path, config, "  num_samples: 2\n")
    assert experiment.num_trials == 12
    assert experiment.param_space["lr"] == {"grid_search": [1e-3, 1e-4]}
    [(marker, choices)] = experiment.param_space.to_dict()["_model_config"].items()
    assert marker == "grid_search"
    assert [choice["fcnet_hiddens"] for choice in choices] == [[4], [8], [16]]
    assert experiment.config.lr == 1e-3


def test_every_point_of_a_grid_is_validated(tmp_path: Path):
    with pytest.raises(ValueError, match=r"x\.yaml:5: team\.config\.minibatch_size.*\(5000\)"):
        load(tmp_path, "minibatch_size: {grid_search: [100, 5000]}")


def test_expressions_run_only_when_allowed(tmp_path: Path):
    document = read_text(
        "team: {run: PPO, env: CartPole-v1, config: {lr: {eval: 'random.choice([1e-3, 1e-4])'}}}", "x"
    )
    [experiment] = parse_experiments(document, allow_eval=True)
    assert experiment.config.lr in (1e-3, 1e-4)
    assert set(experiment.param_space["lr"]) == {"eval"}


def test_an_override_knows_its_own_place():
    document = read_text("team:\n  config:\n    lr: 1\n    gamma: 1", "x")
    document.override(("team", "config", "lr"), 2, "--config")
    assert document.data == {"team": {"config": {"lr": 2, "gamma": 1}}}
    assert document.where(("team", "config", "lr")) == "--config"
    assert document.where(("team", "config", "gamma")) == "x:4"


def test_merged_mappings_and_anchors_are_no_duplicates():
    text = "a: &base {x: 1, y: 2}\nb:\n  <<: *base\n  y: 3\n"
    assert read_text(text, "f").data["b"] == {"x": 1, "y": 3}


def test_an_option_replaces_what_stands_in_a_second_place():
    text = """\
team:
  run: PPO
  env: CartPole-v1
  local_dir: /nowhere
  checkpoint_config: {checkpoint_frequency: 5, checkpoint_at_end: true, num_to_keep: 2}
"""
    said = {"checkpoint_freq": 1, "checkpoint_at_end": False, "storage_path": "/here"}
    document = read_text(text, "x")
    TrainOptions(**{**dict.fromkeys(f.name for f in fields(TrainOptions)), **said}).override(document)
    [experiment] = parse_experiments(document)
    assert experiment.checkpoints == {
        "checkpoint_frequency": 1,
        "checkpoint_at_end": False,
        "num_to_keep": 2,
    }
    assert experiment.storage_path == "/here"
