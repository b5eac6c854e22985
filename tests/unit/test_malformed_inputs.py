"""Malformed inputs, and what is said of each: what was given, what was expected, what to type instead.

Misspelt keys, values of the wrong type and out of range stand in `test_config_errors`, environments that
break while they run in `test_bad_environments`, damaged checkpoints in `test_checkpoint_files`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from rllib_haml.cli.app import rllib
from rllib_haml.config.errors import ConfigError
from rllib_haml.config.parse import load_experiments

CHECKPOINT = Path(__file__).parents[1] / "data" / "checkpoint" / "happo_climbing"
GOOD = """\
team:
  run: HAPPO
  env: matrix_game
  stop: {training_iteration: 1}
  config:
    env_config: {game: climbing}
"""

FILES = {
    "a tab": (GOOD.replace("  run", "\trun"), ["x.yaml:2", "not valid YAML", "'\\t'", "indentation"]),
    "a list": ("- a\n- b\n", ["x.yaml:1", "no experiment", "`my_experiment: {run: HAPPO, env: ...}`"]),
    "two documents": (f"{GOOD}---\n{GOOD}", ["x.yaml:7", "not valid YAML", "another document"]),
    "an alias within itself": (
        "team: &a\n  run: HAPPO\n  env: matrix_game\n  config: *a\n",
        ["x.yaml", "an alias", "Write out what is meant"],
    ),
    "bytes": (bytes(range(256)), ["x.yaml", "no text in UTF-8 (byte 128)", "Save it as UTF-8"]),
    "another encoding": ("é: 1".encode("latin-1"), ["x.yaml", "no text in UTF-8 (byte 0)"]),
    "an experiment without content": ("team:\n", ["x.yaml:1: team", "`name: {run: ..., env: ..., config"]),
    "an algorithm's name alone": ("team: HAPPO\n", ["x.yaml:1: team", "`name: {run: ..., env: ..., config"]),
    "a number for `run`": (GOOD.replace("HAPPO", "5"), ["x.yaml:2: team.run", "given 5", "a string"]),
    "a number for `env`": (GOOD.replace("matrix_game", "5"), ["x.yaml:3: team.env", "given 5", "the name"]),
    "a list for `stop`": (
        GOOD.replace("{training_iteration: 1}", "[1]"),
        ["x.yaml:4: team.stop", "given [1]", "a mapping"],
    ),
    "a word for a number": (
        GOOD.replace("  stop", "  checkpoint_freq: often\n  stop"),
        ["x.yaml:4: team.checkpoint_freq", "given 'often'", "an integer"],
    ),
}

# Line 7 of the file, under `config:`.
SETTINGS = {
    "drift: klip": ["config.drift: drift='klip' is unknown", "Did you mean 'clip'", "my_module:MyClass"],
    "drift: {coeff: 1.0}": ["has no `type`", "name one of none, clip, joint_clip, kl"],
    "drift: {type: kl, coef: 1}": ["kl takes no 'coef'", "Did you mean 'coeff'?"],
    "drift: nowhere:Drift": ["'nowhere:Drift' cannot be imported", "No module named 'nowhere'"],
    "drift: 5": ["given 5", "a string or a mapping", '`drift: "clip"`'],
    "neighbourhood: kl_ball": [
        "kl_ball needs its radius",
        "Write neighbourhood: {type: kl_ball, radius: ...}",
    ],
    "neighbourhood: {type: kl_ball, radius: -1}": ["radius=-1", "nats above 0, such as 0.01"],
    "neighbourhood: {type: kl_ball, radius: big}": ["radius='big'", "nats above 0, such as 0.01"],
    "order: greedy": ["order='greedy' is unknown", "Did you mean 'semi_greedy'?"],
    "order: [agent_0]": ["order=['agent_0']", "each trained policy once, ['agent_0', 'agent_1']"],
    "update_scheme: parallel": ['given "parallel"', "'sequential' or 'simultaneous'"],
    "team_reward: least": ['given "least"', "'shared' or 'mean' or 'sum'"],
    "max_consecutive_nonfinite_updates: 0": ["given 0", "1 <= max_consecutive_nonfinite_updates", ": 10`"],
    "lr: {grid_search: []}": ["needs a list of values", "{grid_search: [1, 2]}"],
    "lr: [[5, 1e-3]]": ["[[5, 0.001]]", "[[0, first], [timestep, value], ...]"],
    "model_config: {fcnet_activation: gelu2}": ["fcnet_activation='gelu2'", "'gelu', 'relu'"],
    "model_config: {fcnet_hiddens: [64, 0]}": ["fcnet_hiddens: given [64, 0]", "integers (1 <= each)"],
    "model_config: {use_lstm: true, use_gru: true}": ["use_lstm and use_gru", "choose one of them"],
    "algorithm_config_overrides_per_module: {nobody: {lr: 1}}": [
        "'nobody'",
        "['agent_0', 'agent_1', 'critic']",
    ],
    "algorithm_config_overrides_per_module: {agent_0: {gamma: 0.5}}": [
        "['gamma']",
        "in common",
        ".training()",
    ],
    "multiagent: {policies: [one]}": ["['agent_0', 'agent_1']", "['one']", "Leave both unset"],
    "torch_skip_nan_gradients: true": ["would have no effect here", "leave it out"],
}

ENV_CONFIGS = {
    "{game: climb}": ["unknown game 'climb'", "Did you mean 'climbing'?"],
    "{payoffs: [[1], [1, 2]]}": ["payoffs=[[1], [1, 2]]", "lists of equal lengths", "[[1, 0], [0, 2]]"],
    "{payoffs: x}": ["payoffs='x'", "numbers in nested lists", "[[1, 0], [0, 2]]"],
}

ENVIRONMENTS = {
    "malformed_envs:WithoutAgents": ["declares no agents", "`possible_agents`"],
    "malformed_envs:Breaks": ["malformed_envs:Breaks, in __init__(): KeyError: 'map_name'"],
    "malformed_envs:WithoutConfig": ["too many positional", "`def __init__(self, config=None)`"],
    "malformed_envs:WithoutSpaces": ["'ann'", "observation space is None", "gymnasium.Space"],
    "malformed_envs:OneSpaceMissing": ["'bob'", "no action space", "every agent of possible_agents"],
    "malformed_envs:NumberAsSpace": ["'bob'", "action space is 3", "gymnasium.Space"],
    "malformed_envs:ReadsText": ["Text", "expected Box, Discrete"],
    "malformed_envs:CountsFromOne": ["'bob'", "Discrete(3, start=1)", "from 0", "rl_module_spec"],
    "malformed_envs:Alone": [
        "made a Alone",
        "MultiAgentEnv or a PettingZoo ParallelEnv",
        "single-agent: use `--run PPO`",
        "make_multi_agent",
    ],
    "malformed_envs:TurnBased": ["made a TurnBased", "ParallelEnv. It is turn-based", "aec_to_parallel"],
    "malformed_envs:nothing": ["made a NoneType", "MultiAgentEnv or a PettingZoo ParallelEnv"],
    "malformed_envs:constant": ["no class or function 'constant'"],
    "malformed_envs:Sond": ["has no `Sond`", "Did you mean `Sound`?"],
    "malformed_envs:": ["no import path", "`package.module.Name`"],
    ":Sound": ["no import path", "`package.module.Name`"],
    "CartPole-v1": ["'CartPole-v1' is gymnasium's", "`--run PPO`", "make_multi_agent('CartPole-v1')"],
}

HAPPO = ["train", "--run", "HAPPO", "--env", "matrix_game"]
FILE = ["train", "-f", "good.yaml"]
# Commands in a directory with a good file, a file that is none, a run with a checkpoint, and a checkpoint
# of which half was copied.
FLAGS = [
    (["tain"], ["No such command 'tain'", "'train'"]),
    (["train"], ["Say what to train", "-f FILE, or --run NAME --env NAME"]),
    (["train", "good.yaml"], ["'good.yaml'", "`rllib train file FILE`"]),
    ([*FILE, "--restor", "x"], ["No such option '--restor'", "--restore"]),
    (["train", "--run", "HAPPO"], ["`env` is missing", "`env: mamujoco`"]),
    ([*HAPPO, "--config", "{lr: 1"], ["--config:1", "not valid YAML", "brackets"]),
    ([*HAPPO, "--config", "[1]"], ["--config:1", "given '[1]'", "'{\"key\": value}'"]),
    ([*FILE, "--stop", "5"], ["--stop:1", "given '5'", "'{\"key\": value}'"]),
    ([*FILE, "--seed", "soon"], ["--seed", "'soon'", "valid integer"]),
    ([*FILE, "--seed", "-1"], ["--seed", "given -1", "0 <= seed"]),
    ([*FILE, "--num-samples", "0"], ["--num-samples", "given 0", "num_samples >= 1"]),
    ([*FILE, "--checkpoint-freq", "-1"], ["--checkpoint-freq", "given -1", "checkpoint_freq >= 0"]),
    ([*FILE, "--max-failures", "-2"], ["--max-failures", "given -2", "max_failures >= -1"]),
    ([*FILE, "--ray-num-cpus", "-1"], ["--ray-num-cpus", "-1 is not in the range x>=0"]),
    ([*FILE, "--storage-path", "a_file"], ["--storage-path", "a_file", "Name a directory"]),
    ([*FILE, "--resume", "--storage-path", "."], ["nothing to resume", "Start one without --resume"]),
    ([*FILE, "--run", "HAPO"], ["--run", "'HAPO' is no algorithm", "`HAPPO`"]),
    ([*FILE, "--restore", "nowhere"], ["--restore", "no checkpoint at", "nowhere"]),
    (
        [*FILE, "--restore", "run"],
        ["--restore", "no checkpoint of an algorithm", "checkpoint_000003: name that"],
    ),
    ([*FILE, "--restore", "half"], ["--restore", "half is damaged", "is missing"]),
    (
        [*FILE, "--restore", "run/checkpoint_000003", "--run", "MAPPO"],
        ["--restore", "is HAPPO's, this is MAPPO", "set `run: HAPPO`"],
    ),
    (
        ["train", "--run", "PPO", "--env", "CartPole-v1", "--restore", "run/checkpoint_000003"],
        ["--restore", "is HAPPO's, this is PPO", "set `run: HAPPO`"],
    ),
    (
        [
            *HAPPO,
            "--restore",
            "run/checkpoint_000003",
            "--config",
            "{env_config: {payoffs: [[1, 0], [0, 2]]}}",
        ],
        [
            "--restore",
            "does not fit",
            "'agent_0' was Discrete(3), and is Discrete(2)",
            "Give the environment",
        ],
    ),
    (["validate", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
    (["evaluate", "nowhere"], ["no checkpoint at", "nowhere"]),
    (["evaluate", "a_file"], ["a_file is no checkpoint", "`checkpoint_000010`"]),
    (["evaluate", "run"], ["no checkpoint of an algorithm", "checkpoint_000003: name that"]),
    (["evaluate", "."], ["no checkpoint of an algorithm", "run/checkpoint_000003: name that"]),
    (["evaluate", "half"], ["half is damaged", "is missing", "No intact checkpoint"]),
    (["evaluate", "run/checkpoint_000003", "--episodes", "0"], ["--episodes", "0 is not in the range x>=1"]),
    (["evaluate", "run/checkpoint_000003", "--render", "a_file"], ["--render", "Name a directory"]),
    (["adapters", "list", "run/checkpoint_000003"], ["has no adapters", "`rllib train --run LoRASA`"]),
    (["adapters", "list", "nowhere"], ["There is no checkpoint at", "nowhere"]),
    (["example", "get", "mpe_spread"], ["mpe_spread", "Name one of: a2po/mpe_spread,", "mappo/mpe_spread."]),
    (["example", "get", "lbf"], ["Name one of: happo/lbf, mappo/lbf."]),
    (["example", "get", "nosuch"], ["nosuch", "no such example", "Valid:"]),
]


def message_of(text: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_experiments("x.yaml")
    return str(caught.value)


def assert_says(message: str, words: list[str]) -> None:
    """All of them, in this order."""
    place = 0
    for word in words:
        place = message.find(word, place)
        assert place >= 0, f"{word!r} is not in, or too early in: {message}"


@pytest.mark.parametrize("what", FILES)
def test_files(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, words = FILES[what]
    assert_says(message_of(text, tmp_path, monkeypatch), words)


@pytest.mark.parametrize("line", SETTINGS)
def test_settings(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = message_of(f"{GOOD}    {line}\n", tmp_path, monkeypatch)
    assert_says(message, ["x.yaml:7: team.config.", *SETTINGS[line]])


@pytest.mark.parametrize("value", ENV_CONFIGS)
def test_env_configs(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = message_of(GOOD.replace("{game: climbing}", value), tmp_path, monkeypatch)
    assert_says(message, ["x.yaml:6: team.config.env_config", *ENV_CONFIGS[value]])


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environments(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = message_of(f"team:\n  run: HAPPO\n  env: '{name}'\n", tmp_path, monkeypatch)
    assert_says(message, ["x.yaml:3: team.env", *ENVIRONMENTS[name]])


@pytest.mark.parametrize("command, words", FLAGS, ids=lambda x: " ".join(x))
def test_flags(command: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(GOOD)
    Path("a_file").touch()
    shutil.copytree(CHECKPOINT, "run/checkpoint_000003")
    if "half" in command:
        shutil.rmtree("run")
        shutil.copytree(CHECKPOINT, "half", ignore=shutil.ignore_patterns("state.pkl"))
    result = CliRunner().invoke(rllib, command)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert_says(" ".join(result.output.split()), words)


def test_control_a_single_agent_suits_ppo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text("pole:\n  run: PPO\n  env: CartPole-v1\n")
    assert load_experiments("x.yaml")


def test_control_what_is_well_formed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(GOOD)
    Path("sound.yaml").write_text("team:\n  run: HAPPO\n  env: malformed_envs:Sound\n")
    Path("restored.yaml").write_text(GOOD.replace("  config", f"  restore: {CHECKPOINT}\n  config"))
    result = CliRunner().invoke(rllib, ["validate", "good.yaml", "sound.yaml", "restored.yaml"])
    assert result.exit_code == 0, result.output
