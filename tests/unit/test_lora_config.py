"""What of a network an adapter's configuration names."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from lora_teams import make_actor

from rllib_haml.modules.lora_config import LoRAConfig, exactly, matches
from rllib_haml.modules.lora_targets import Target, find_targets, full_ranks

MLP = ["network.1", "network.4", "network.7"]
GRU = ["network.1", "network.4", "memory.input_gates", "memory.hidden_gates", "output"]


def adapted(network: str = "mlp", **keys: Any) -> dict[str, Target]:
    config = LoRAConfig(**{"r": 2} | keys)
    return {target.name: target for target in find_targets(make_actor(network=network), config)}


def low_rank(network: str = "mlp", **keys: Any) -> list[str]:
    return [target.module for target in adapted(network, **keys).values() if target.rank is not None]


def test_defaults_are_those_of_peft_and_of_the_authors() -> None:
    config = LoRAConfig()
    assert (config.r, config.lora_alpha, config.bias) == (8, 8, "none")
    assert config.rank_and_scaling("any") == (8, 1.0)
    assert LoRAConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    "network, targets, expected",
    [
        ("mlp", "all-linear", MLP),
        ("gru", "all-linear", GRU),
        ("mlp", ["network.1"], ["network.1"]),
        ("mlp", ["4"], ["network.4"]),
        ("gru", ["hidden_gates", "output"], ["memory.hidden_gates", "output"]),
        ("gru", r"memory\..*", ["memory.input_gates", "memory.hidden_gates"]),
        ("gru", r".*gates|network\.1", ["network.1", "memory.input_gates", "memory.hidden_gates"]),
    ],
)
def test_target_modules(network: str, targets: Any, expected: list[str]) -> None:
    assert low_rank(network, target_modules=targets) == expected


def test_a_list_matches_ends_after_a_dot_and_an_expression_whole_names() -> None:
    assert matches(["gates"], "memory.gates")
    assert not matches(["gates"], "memory.hidden_gates")
    assert matches("memory.*", "memory.gates")
    assert not matches("gates", "memory.gates")


@pytest.mark.parametrize("unwanted", [["7", "network.1"], r"network\.(1|7)"])
def test_exclude_modules(unwanted: Any) -> None:
    assert low_rank(exclude_modules=unwanted) == ["network.4"]


@pytest.mark.parametrize("rslora", [False, True])
def test_patterns_change_rank_and_scaling_of_their_layers(rslora: bool) -> None:
    keys: dict[str, Any] = {"rank_pattern": {"network.4": 5}, "alpha_pattern": {"4|7": 10.0}}
    found = adapted(**keys, lora_alpha=6, use_rslora=rslora)
    root = math.sqrt if rslora else float
    assert {t.module: (t.rank, t.scaling) for t in found.values() if t.rank} == {
        "network.1": (2, 6 / root(2)),
        "network.4": (5, 10 / root(5)),
        "network.7": (2, 10 / root(2)),
    }


def test_an_exact_key_matches_one_module_only() -> None:
    config = LoRAConfig(r=1, rank_pattern={exactly("network.1"): 3})
    ranks = [config.rank_and_scaling(m)[0] for m in ("network.1", "my.network.1", "network.10", "networkx1")]
    assert ranks == [3, 1, 1, 1]


@pytest.mark.parametrize(
    "bias, expected",
    [
        ("none", []),
        ("lora_only", ["network.4.bias"]),
        ("all", [f"network.{i}.bias" for i in (0, 1, 3, 4, 6, 7)]),
    ],
)
def test_biases(bias: str, expected: list[str]) -> None:
    found = adapted(bias=bias, target_modules=["4"], adapt_log_std=False)
    assert [name for name in found if name.endswith("bias")] == expected
    assert all(found[name].rank is None for name in expected)


def test_saved_modules_have_dense_differences_of_all_that_is_in_them() -> None:
    found = adapted("gru", modules_to_save=["memory", "network.0"], adapt_log_std=False)
    inside = [
        f"memory.{part}.{leaf}"
        for part in ("input_gates", "hidden_gates", "norm")
        for leaf in ("weight", "bias")
    ]
    dense = ["network.0.weight", "network.0.bias", *inside]
    assert [name for name, target in found.items() if target.rank is None] == dense
    assert [t.module for t in found.values() if t.rank] == ["network.1", "network.4", "output"]


def test_log_std_is_adapted_where_there_is_one() -> None:
    assert adapted()["head.log_std"] == Target("head.log_std", (3,))
    assert "head.log_std" not in adapted(adapt_log_std=False)


def test_full_rank() -> None:
    """Layers are 5→10→9→3: at r=3 the head is full."""
    keys: dict[str, Any] = {"r": 3, "lora_alpha": 6}
    assert adapted(**keys)["network.7.weight"] == Target("network.7.weight", (3, 9))
    clipped = adapted(**keys | {"r": 6}, full_rank_policy="clip")
    assert clipped["network.7.weight"] == Target("network.7.weight", (3, 9), 3, 1.0)
    assert clipped["network.1.weight"].rank == 5
    assert clipped["network.4.weight"].rank == 6
    with pytest.raises(ValueError, match=r"network.7.weight.*at most rank 3, and r=3.*rank_pattern"):
        adapted(**keys, full_rank_policy="error")
    assert len(adapted(**keys, full_rank_policy="error", rank_pattern={"7": 2})) == 4


@pytest.mark.parametrize("policy, made", [("dense", "plain matrices"), ("clip", "the rank they have")])
def test_layers_whose_rank_is_not_low_are_told(policy: Any, made: str) -> None:
    actor = make_actor()
    config = LoRAConfig(r=4, rank_pattern={"4": 9}, full_rank_policy=policy)
    found = full_ranks(actor, config)
    assert f"network.4 (9, 10) (r=9), network.7 (3, 9) (r=4): full_rank_policy='{policy}'" in found
    assert made in found
    assert full_ranks(actor, LoRAConfig(r=2)) == ""


def test_a_dense_difference_takes_fewer_parameters_than_full_rank_factors() -> None:
    dense, factored = Target("a.weight", (3, 9)), Target("a.weight", (3, 9), 3)
    assert (dense.num_parameters, factored.num_parameters) == (27, 36)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"target_modules": ["network.2x"]}, r"target_modules names 'network.2x'.*Did you mean 'network"),
        ({"target_modules": ["network.0"]}, r"'network.0', a LayerNorm.*modules_to_save"),
        ({"target_modules": "nothing"}, r"'nothing' matches none of the linear layers \['network.1'"),
        ({"exclude_modules": ["hed"]}, r"exclude_modules names 'hed'"),
        (
            {"exclude_modules": "hed"},
            r"exclude_modules='hed' matches none of the linear layers \['network.1'",
        ),
        ({"rank_pattern": {"network.2": 4}}, r"rank_pattern names 'network.2', .*Did you mean 'network"),
        ({"alpha_pattern": {"9": 4}}, r"alpha_pattern names '9', which matches none of the layers"),
        (
            {"rank_pattern": {"4": 4}, "exclude_modules": ["4"]},
            r"rank_pattern names '4', which matches none .* network.1, network.7\.",
        ),
        ({"modules_to_save": ["hed"]}, r"modules_to_save names 'hed'.*Did you mean 'head'"),
        ({"target_modules": [], "adapt_log_std": False}, r"nothing is adapted"),
    ],
)
def test_names_that_stand_for_nothing(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(**keys)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"rank": 4}, r"no key 'rank'.*Known keys: r, lora_alpha"),
        ({"lora_alfa": 4}, r"no key 'lora_alfa'. Did you mean 'lora_alpha'"),
        ({"bias": "some"}, r"bias='some'.*'none', 'all', 'lora_only'"),
        ({"init_lora_weights": False}, r"init_lora_weights=False.*'lorasa', True"),
        ({"full_rank_policy": "x"}, r"full_rank_policy='x'.*'dense', 'clip', 'error'"),
        ({"r": 0}, r"rank r=0: expected a whole number"),
        ({"r": 2.5}, r"rank r=2.5"),
        ({"rank_pattern": {"a": 0}}, r"rank a=0"),
        ({"lora_alpha": 0}, r"alpha lora_alpha=0"),
        ({"alpha_pattern": {"a": -1}}, r"alpha a=-1"),
        ({"target_modules": "("}, r"'\(' is no regular expression"),
        ({"lora_alpha": "8"}, r"lora_alpha='8': expected a number above 0"),
        ({"lora_alpha": math.inf}, r"lora_alpha=inf"),
        ({"lora_alpha": True}, r"lora_alpha=True"),
        ({"alpha_pattern": {"a": None}}, r"alpha a=None"),
        ({"r": "8"}, r"rank r='8'"),
        ({"r": None}, r"rank r=None"),
        ({"use_rslora": "no"}, r"use_rslora='no': expected true or false"),
        ({"adapt_log_std": 1}, r"adapt_log_std=1: expected true or false"),
        ({"modules_to_save": "head"}, r"modules_to_save='head': expected a list .* \[head\]"),
        ({"target_modules": 3}, r"target_modules=3: expected all-linear, a list"),
        ({"target_modules": [1]}, r"target_modules=\[1\]"),
        ({"exclude_modules": {"a": 1}}, r"exclude_modules=.*: expected a list"),
        ({"rank_pattern": ["a"]}, r"rank_pattern=\['a'\]: expected a rank by layer"),
        ({"alpha_pattern": {1: 2}}, r"alpha_pattern=.*: expected a number by layer"),
        (8, r"lora=8: expected keys such as"),
        (None, r"lora=None: expected keys"),
        ({"rank_pattern": {"[": 2}}, r"'\[' is no regular expression"),
    ],
)
def test_a_wrong_key_or_value_says_what_to_write(keys: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRAConfig.from_dict(keys)


@pytest.mark.parametrize("rslora", [False, True])
def test_alpha_of_is_the_inverse_of_the_scaling(rslora: bool) -> None:
    config = LoRAConfig(use_rslora=rslora)
    alpha = config.alpha_of(0.7, 5)
    assert replace(config, r=5, lora_alpha=alpha).rank_and_scaling("x")[1] == pytest.approx(0.7, rel=1e-15)


def test_null_is_the_default_as_in_pefts_files() -> None:
    keys = ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "modules_to_save")
    assert LoRAConfig.from_dict(dict.fromkeys(keys)) == LoRAConfig()
