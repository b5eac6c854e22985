"""Every mistake in a YAML file is named with its line, its key and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from rllib_haml.config import ConfigError, load_experiments, parse_experiments
from rllib_haml.config.document import read_file

GOOD = """\
team:
  run: PPO
  env: CartPole-v1
  stop: {training_iteration: 1}
  config:
    num_env_runners: 0
"""


def problems(tmp_path: Path, text: str) -> list[str]:
    """What is wrong with a file, `file:` left out."""
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_experiments(path)
    return [line.replace(f"{path}:", "") for line in str(caught.value).splitlines()]


def test_the_file_without_mistakes_loads(tmp_path: Path):
    path = tmp_path / "x.yaml"
    path.write_text(GOOD)
    [experiment] = load_experiments(path)
    assert experiment.name == "team"


# Each line is added under `config:`, as line 7 of the file.
IN_CONFIG = {
    "num_epoch: 3": ["7: ", "num_epoch", "unknown key of PPO", "`num_epochs`"],
    "lr: fast": ["7: ", "config.lr", '"fast"', "a number", "lr: 5e-05"],
    "lr: '5e-4'": ["config.lr", '"5e-4"', "a number"],
    "num_epochs: true": ["num_epochs", "given true", "an integer"],
    "num_epochs: 2.5": ["num_epochs", "given 2.5", "an integer"],
    "num_epochs: 0": ["num_epochs", "given 0", "1 <= num_epochs"],
    "gamma: 1.5": ["gamma", "given 1.5", "0 <= gamma <= 1", "gamma: 0.99"],
    "gamma: .nan": ["gamma", "0 <= gamma <= 1"],
    "gamma: null": ["gamma", "given null", "a number"],
    "lr: 0": ["lr", "0 < lr"],
    "lr: [[0, 1e-3], [1000, -1e-3]]": ["lr", "0 <= lr"],
    "clip_param: -0.2": ["clip_param", "0 < clip_param"],
    "lambda: 2": ["config.lambda", "0 <= lambda_ <= 1"],
    "batch_mode: complete": ["batch_mode", "complete_episodes"],
    "grad_clip_by: globl_norm": ["grad_clip_by", "global_norm"],
    "env_config: 5": ["env_config", "given 5", "a mapping"],
    "model: {fcnet_hidens: [8]}": ["7: ", "model.fcnet_hidens", "`fcnet_hiddens`"],
    "model_config: {fcnet_hiddens: 8}": ["model_config.fcnet_hiddens", "a list of integers"],
    "model: {custom_model: mine}": ["model.custom_model", "rl_module_spec"],
    "callbacks: no_such_package.Callbacks": ["callbacks", "no_such_package", "PYTHONPATH"],
    "callbacks: json.Callbacks": ["callbacks", "`json` has no `Callbacks`"],
    "evaluation_config: {explor: false}": ["evaluation_config.explor", "`explore`"],
    "multiagent: {policies: [a, b], policy_mapping_fn: a}": ["policy_mapping_fn", "no import path"],
    "multiagent: {policies: [1]}": ["multiagent.policies", "[first, second]"],
    "multiagent: {polices: [a]}": ["multiagent.polices", "`policies`"],
    "observation_filter: MeanStdFilter": ["observation_filter", "old API stack", "environment"],
    "framework: tf2": ["framework", "torch"],
    "num_workers: 1": ["num_workers", "old name of `num_env_runners`", "Delete one"],
    "minibatch_size: 9000": ["7: ", "minibatch_size", "9000", "4000"],
    "lr: {grid_search: [1e-3, slow]}": ["config.lr", '"slow"'],
    "lr: {grid_search: 1e-3}": ["config.lr", "needs a list"],
    "lr: {eval: '__import__(\"os\").abort()'}": ["config.lr", "not executed", "--allow-eval"],
    "env: CartPole-v1": ["config.env", "given twice"],
}


@pytest.mark.parametrize("line", IN_CONFIG)
def test_mistakes_in_config(line: str, tmp_path: Path):
    [message] = problems(tmp_path, f"{GOOD}    {line}\n")
    for fragment in IN_CONFIG[line]:
        assert fragment in message


# What is replaced in the good file, by what, and what is said of it.
ELSEWHERE = [
    ("run: PPO", "run: PP0", ["2: team.run", "'PP0' is no algorithm", "`PPO`"]),
    ("run: PPO", "ruun: PPO", ["2: team.ruun", "unknown key", "`run`"]),
    ("  run: PPO\n", "", ["1: team", "`run` is missing"]),
    ("env: CartPole-v1", "env: matrix_gam", ["3: team.env", "`matrix_game`"]),
    ("env: CartPole-v1", "env: nowhere.Env", ["3: team.env", "nowhere", "cannot be imported"]),
    ("  env: CartPole-v1\n", "", ["1: team", "`env` is missing"]),
    ("env: CartPole-v1", "env: matrix_game", ["3: team.env", "payoffs or game"]),
    ("training_iteration: 1", "training_iterations: 1", ["4: ", "never stop", "`training_iteration`"]),
    *(
        ("training_iteration: 1", f"{name}: 1", ["4: ", "mean `num_env_steps_sampled_lifetime`?"])
        for name in ("timesteps", "steps", "env_steps", "total_env_steps")
    ),
    ("training_iteration: 1", "timestep: 1", ["4: ", "mean `timesteps_total`?"]),
    ("training_iteration: 1", "episode_return_mean: 1", ["`env_runners/episode_return_mean`"]),
    ("training_iteration: 1", "training_iteration: many", ["'many'", "a number"]),
    ("stop:", "checkpoint_frq: 1\n  stop:", ["4: team.checkpoint_frq", "`checkpoint_freq`"]),
    ("stop:", "num_samples: 0\n  stop:", ["4: team.num_samples", "num_samples >= 1"]),
    ("stop:", "checkpoint_config: {num_to_keep: a}\n  stop:", ["num_to_keep", "an integer"]),
    ("stop:", "restore: /no/checkpoint\n  stop:", ["4: team.restore", "/no/checkpoint"]),
    ("stop:", "restore: s3://bucket/run\n  stop:", ["4: team.restore", "s3://bucket/run", "copy it"]),
    ("stop:", "tune_callbacks: [no.Such]\n  stop:", ["tune_callbacks", "no.Such"]),
    ("stop:", "run: PPO\n  stop:", ["4: run", "a second time", "line 2"]),
    ("stop: {", "stop: {{", ["not valid YAML", "brackets"]),
    ("stop:", "\0stop:", ["not valid YAML", "special characters are not allowed"]),
    (GOOD, "", ["no experiment"]),
    (GOOD, "run: PPO\nenv: CartPole-v1\n", ["has no name"]),
]


@pytest.mark.parametrize("old, new, fragments", ELSEWHERE)
def test_mistakes_elsewhere(old: str, new: str, fragments: list[str], tmp_path: Path):
    messages = problems(tmp_path, GOOD.replace(old, new))
    assert any(all(fragment in message for fragment in fragments) for message in messages), messages


def test_all_mistakes_of_a_file_come_together(tmp_path: Path):
    second = GOOD.replace("team:", "other:").replace("stop:", "stopp:")
    messages = problems(tmp_path, f"{GOOD}    gama: 1\n    lr: fast\n{second}")
    assert [message.split(": ")[1] for message in messages] == [
        "team.config.gama",
        "team.config.lr",
        "other.stopp",
    ]


def test_null_is_a_value_only_where_it_means_something(tmp_path: Path):
    text = """\
team:
  run: HAPPO
  env: matrix_game
  config:
    env_config: {game: climbing}
    vf_clip_param: null
    huber_delta: null
    minibatch_size: null
    critic_minibatch_size: null
"""
    (tmp_path / "good.yaml").write_text(text)
    [experiment] = load_experiments(tmp_path / "good.yaml")
    assert experiment.config.vf_clip_param is None
    wrong = text + "    critic_lr: null\n    critic_num_epochs: null\n"
    messages = problems(tmp_path, wrong.replace("{game: climbing}", "null"))
    assert [message.split(": ")[1] for message in messages] == [
        f"team.config.{key}" for key in ("env_config", "critic_lr", "critic_num_epochs")
    ]


@pytest.mark.parametrize("config, problem", [("", None), (" 5", "given 5, expected a mapping")])
def test_overrides_of_a_file_without_a_mapping_under_config(config: str, problem: str | None, tmp_path: Path):
    path = tmp_path / "file.yaml"
    path.write_text(f"team:\n  run: PPO\n  env: CartPole-v1\n  config:{config}\n")
    document = read_file(path)
    document.override(("team", "config", "seed"), 1, "--seed")
    if problem is None:
        [experiment] = parse_experiments(document)
        assert experiment.config.seed == 1
    else:
        with pytest.raises(ConfigError, match=problem):
            parse_experiments(document)


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_experiments("nowhere.yaml")


def test_keys_and_ranges_that_an_algorithm_declares(tmp_path: Path):
    text = """\
team:
  run: HAPPO
  env: matrix_game
  config:
    env_config: {game: climbing}
    kl_coeff: 0.2
    critic_lr: -1
    use_gae: true
    model_config: {fcnet_hidens: [8]}
"""
    refused, negative, misspelt = problems(tmp_path, text)
    assert "6: team.config.kl_coeff: HAPPO does not take it" in refused
    assert "clip_param" in refused
    assert "7: team.config.critic_lr: given -1" in negative
    assert "9: team.config.model_config.fcnet_hidens" in misspelt
