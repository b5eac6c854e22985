"""What a key may be is said once: Python and YAML refuse the same values, in the same words."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml

import rllib_haml
from rllib_haml import HAPPOConfig, HATRPOConfig, LoRASAConfig, MAPPOConfig
from rllib_haml.algorithms.settings import settings_of
from rllib_haml.config.document import read_text
from rllib_haml.config.errors import ConfigError
from rllib_haml.config.parse import parse_experiments

GAME = {"game": "climbing"}
KINDS: dict[str, Any] = {
    "HAPPO": HAPPOConfig,
    "HATRPO": HATRPOConfig,
    "MAPPO": MAPPOConfig,
    "LoRASA": LoRASAConfig,
}


def in_python(kind: str, key: str, value: Any) -> str:
    """What `validate` says of a value that its builder method is given; empty if it is content."""
    config = KINDS[kind]().environment("matrix_game", env_config=dict(GAME))
    builder = settings_of(config)[key].builder
    try:
        getattr(config, builder)(**{key: value})
        config.validate()
    except ValueError as error:
        return str(error).partition("\nTo suppress")[0]
    return ""


def in_yaml(kind: str, key: str, value: Any) -> str:
    """What a file is refused with, from the key on; its line is checked. Empty if it is loaded."""
    line = yaml.safe_dump({key: value}, default_flow_style=True).strip()[1:-1]
    text = f"team:\n  run: {kind}\n  env: matrix_game\n  config:\n    env_config: {GAME}\n    {line}\n"
    try:
        parse_experiments(read_text(text, "x.yaml"))
    except ConfigError as error:
        (problem,) = error.problems
        assert problem.where == "x.yaml:6", problem
        return f"{problem.key.removeprefix('team.config.')}: {problem.text}"
    return ""


UNSORTED = [[0, 1e-3], [100, 1e-4], [50, 0.0]]
WRONG: list[tuple[str, str, Any, str]] = [
    ("HAPPO", "lr", -1e-3, "0 < lr"),
    ("HAPPO", "lr", 0, "0 < lr"),
    ("HAPPO", "lr", math.nan, "given NaN, expected a number"),
    ("HAPPO", "lr", math.inf, "given Infinity, expected a number"),
    ("HAPPO", "lr", True, "given true, expected a number"),
    ("HAPPO", "lr", "fast", 'given "fast", expected a number'),
    ("HAPPO", "lr", None, "given null, expected a number"),
    ("HAPPO", "lr", UNSORTED, "rising timesteps"),
    ("HAPPO", "lr", [[10, 1e-3], [100, 1e-4]], "[[0, first], [timestep, value], ...]"),
    ("HAPPO", "lr", [[0, 1e-3]], "[[0, first], [timestep, value], ...]"),
    ("HAPPO", "lr", [[0, 1e-3], [100, -1e-4]], "0 <= lr"),
    ("HAPPO", "lr", [[0, 1e-3], [100, math.nan]], "0 <= lr"),
    ("HAPPO", "lr", [], "rising timesteps"),
    ("HAPPO", "critic_lr", UNSORTED, "rising timesteps"),
    ("HAPPO", "entropy_coeff", UNSORTED, "rising timesteps"),
    ("HAPPO", "gamma", 1.01, "0 <= gamma <= 1"),
    ("HAPPO", "lambda_", -0.1, "0 <= lambda_ <= 1"),
    ("HAPPO", "gamma", UNSORTED, "expected a number (0 <= gamma <= 1)"),
    ("HAPPO", "clip_param", 0.0, "0 < clip_param"),
    ("HAPPO", "vf_clip_param", -1.0, "0 < vf_clip_param"),
    ("HAPPO", "grad_clip", 0, "0 < grad_clip"),
    ("HAPPO", "minibatch_size", 0, "1 <= minibatch_size"),
    ("HAPPO", "critic_minibatch_size", 0, "1 <= critic_minibatch_size"),
    ("HAPPO", "num_epochs", 2.5, "given 2.5, expected an integer"),
    ("HAPPO", "num_epochs", False, "given false, expected an integer"),
    ("HAPPO", "critic_num_epochs", -1, "0 <= critic_num_epochs"),
    ("HAPPO", "critic_num_epochs", None, "given null"),
    ("HAPPO", "train_batch_size_per_learner", -4, "1 <= train_batch_size_per_learner"),
    ("HAPPO", "huber_delta", -0.1, "0 < huber_delta"),
    ("HAPPO", "compound_clip", "third", "expected a number (0 <= compound_clip) or 'half'"),
    ("HAPPO", "use_value_norm", "yes", "expected true or false"),
    ("HAPPO", "use_value_norm", 1, "expected true or false"),
    ("HAPPO", "use_value_norm", None, "expected true or false"),
    ("HAPPO", "update_scheme", "both", "'sequential' or 'simultaneous'"),
    ("HAPPO", "team_reward", "max", "'shared' or 'mean' or 'sum'"),
    ("HAPPO", "explore", "no", "expected true or false"),
    ("HAPPO", "seed", 2**40, "0 <= seed <= 2147483647"),
    ("HAPPO", "seed", -1, "0 <= seed"),
    ("HAPPO", "seed", 1.0, "an integer"),
    ("HAPPO", "sample_timeout_s", -1, "0 <= sample_timeout_s"),
    ("HAPPO", "env_step_timeout_s", 0, "0 < env_step_timeout_s"),
    ("HAPPO", "gym_env_vectorize_mode", "async", "`num_env_runners`"),
    ("HAPPO", "clip_rewards", 1.0, "in the environment"),
    ("HAPPO", "clip_rewards", True, "in the environment"),
    ("HATRPO", "critic_lr", -1.0, "0 <= critic_lr"),
    ("MAPPO", "share_parameters", "yes", "expected true or false"),
    ("LoRASA", "lr", -1e-3, "0 < lr"),
    ("LoRASA", "adapters_from", 1.5, "0 <= adapters_from <= 1"),
    ("LoRASA", "adapters_from", -3, "0 <= adapters_from"),
    ("LoRASA", "adapters_from", "soon", "'plateau'"),
    ("LoRASA", "adapter_mode", "thawed", "'frozen' or 'joint'"),
    ("LoRASA", "total_env_steps", 0, "1 <= total_env_steps"),
    ("LoRASA", "plateau_patience", 2.5, "an integer"),
    ("LoRASA", "plateau_min_gain", math.nan, "a number"),
]


@pytest.mark.parametrize("kind, key, value, said", WRONG)
def test_python_and_yaml_refuse_it_in_the_same_words(kind: str, key: str, value: Any, said: str) -> None:
    told = in_python(kind, key, value)
    assert told.startswith(f"{key}: given "), told
    assert said in told
    assert in_yaml(kind, key, value) == told


@pytest.mark.parametrize(
    "key, value",
    [("batch_mode", "complete"), ("rollout_fragment_length", "all"), ("num_envs_per_env_runner", 0)],
)
def test_what_rllibs_methods_refuse_has_their_words_in_python(key: str, value: Any) -> None:
    assert key in in_python("HAPPO", key, value)
    assert in_yaml("HAPPO", key, value).startswith(f"{key}: given ")


RIGHT: list[tuple[str, Any]] = [
    ("lr", 1e-3),
    ("lr", 1),
    ("lr", [[0, 1e-3], [100, 1e-4], [100, 1e-5], [1e6, 0.0]]),
    ("critic_lr", 0.0),
    ("gamma", 1),
    ("gamma", 0.0),
    ("minibatch_size", None),
    ("vf_clip_param", None),
    ("grad_clip", None),
    ("huber_delta", None),
    ("compound_clip", "half"),
    ("compound_clip", None),
    ("seed", None),
    ("seed", 2**31 - 1),
    ("clip_rewards", False),
    ("gym_env_vectorize_mode", "sync"),
    ("num_cpus_per_env_runner", 0.5),
    ("evaluation_interval", None),
    ("sample_timeout_s", math.inf),
]


@pytest.mark.parametrize("key, value", RIGHT)
def test_control_both_take_what_can_be(key: str, value: Any) -> None:
    assert in_python("HAPPO", key, value) == ""
    assert in_yaml("HAPPO", key, value) == ""


@pytest.mark.parametrize(
    "key, value, became",
    [
        ("lr", np.float32(0.5), 0.5),
        ("num_epochs", np.int64(3), 3),
        ("use_value_norm", np.bool_(False), False),
        ("lr", np.array([[0, 0.5], [100, 0.25]]), [[0, 0.5], [100, 0.25]]),
        ("lr", ((0, 0.5), (100, 0.25)), ((0, 0.5), (100, 0.25))),
        ("gym_env_vectorize_mode", gym.VectorizeMode.SYNC, "sync"),
    ],
)
def test_numbers_of_numpy_and_members_of_enumerations_are_values(key: str, value: Any, became: Any) -> None:
    config: Any = HAPPOConfig().environment("matrix_game", env_config=dict(GAME))
    getattr(config, settings_of(config)[key].builder)(**{key: value})
    config.validate()
    assert getattr(config, key) == became
    assert type(getattr(config, key)) is type(became)


@pytest.mark.parametrize("value", [np.float64("nan"), np.float32(-1), np.array([[0, 1.0], [9, -1.0]])])
def test_they_are_refused_like_others(value: Any) -> None:
    assert in_python("HAPPO", "lr", value).startswith("lr: given ")


def test_settings_of_one_evaluation_or_one_policy_are_checked_alike() -> None:
    for key, value in (("gamma", 5), ("seed", 2**40), ("num_epochs", 0), ("lr", "fast")):
        said = in_python("HAPPO", key, value)
        assert said.startswith(f"{key}: given")
        for whole, partial in (
            ("evaluation_config", {key: value}),
            ("algorithm_config_overrides_per_module", {"agent_0": {key: value}}),
        ):
            place = f"{whole}.{'agent_0.' if 'agent_0' in partial else ''}"
            assert in_python("HAPPO", whole, partial) == f"{place}{said}"
            assert in_yaml("HAPPO", whole, partial) == f"{place}{said}"
    assert in_python("HAPPO", "evaluation_config", {"explore": False, "lambda": 0.5}) == ""
    told = in_python("HAPPO", "evaluation_config", {"gama": 0.5})
    assert told == "evaluation_config.gama: HAPPOConfig has no such key. Did you mean 'gamma'?"


def test_every_value_of_a_grid_is_checked() -> None:
    assert in_yaml("HAPPO", "lr", {"grid_search": [1e-3, 1e-4]}) == "", "control"
    for wrong in (-1e-3, UNSORTED, math.nan):
        assert in_yaml("HAPPO", "lr", {"grid_search": [1e-3, wrong]}) == in_python("HAPPO", "lr", wrong)


NETWORKS: list[tuple[dict[str, Any], str]] = [
    ({"fcnet_hiddens": [64, 0]}, "fcnet_hiddens: given [64, 0], expected a list of integers (1 <= each)."),
    ({"fcnet_hiddens": "big"}, "a list of integers"),
    ({"fcnet_hiddens": [2.5]}, "a list of integers"),
    ({"max_std": math.nan}, "0 < max_std"),
    ({"max_std": math.inf, "std_parametrisation": "exp"}, "0 < max_std"),
    ({"lstm_cell_size": 0, "use_lstm": True}, "1 <= lstm_cell_size"),
    ({"max_seq_len": 2.5}, "an integer"),
    ({"use_gru": "yes"}, "expected true or false"),
    ({"std_parametrisation": "softplus"}, "'bounded' or 'exp'"),
    ({"head_gain": -1}, "0 <= head_gain"),
]


@pytest.mark.parametrize("model, said", NETWORKS)
def test_what_networks_may_be_is_said_once_too(model: dict[str, Any], said: str) -> None:
    told = in_python("HAPPO", "model_config", model)
    assert said in told
    assert in_yaml("HAPPO", "model_config", model) == told.replace("model_config: ", "model_config.")


def test_networks_take_numbers_of_numpy() -> None:
    model = {"fcnet_hiddens": [np.int64(8)], "max_std": np.float32(0.4)}
    assert in_python("HAPPO", "model_config", model) == ""


LORAS = [{"r": 0}, {"r": 2.5}, {"r": True}, {"lora_alpha": math.nan}, {"rank_pattern": {"a": 0}}, {"rr": 8}]


@pytest.mark.parametrize("lora", LORAS)
def test_loras_keys_too(lora: dict[str, Any]) -> None:
    told = in_python("LoRASA", "lora", lora)
    assert told.startswith("lora")
    assert in_yaml("LoRASA", "lora", lora) == (told if told.startswith("lora: ") else f"lora: {told}")
    assert in_python("LoRASA", "lora", {"r": np.int64(4), "rank_pattern": {"network.1": np.int64(2)}}) == ""


def test_every_key_of_every_algorithm_takes_its_default() -> None:
    """A default that its own annotation refused would be refused as soon as somebody wrote it down."""
    for name in rllib_haml.__all__:
        config_class = getattr(rllib_haml, name)
        if name.endswith("Config"):
            default = config_class()
            wrong = {
                key: setting.default
                for key, setting in settings_of(default).items()
                if setting.is_plain and setting.mistake(setting.default)
            }
            assert wrong == {}
