"""The table from `PPOConfig` to `HAPPOConfig` leaves out nothing that the two differ in."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from rllib_haml import HAPPOConfig
from rllib_haml.modules.model_config import ModelConfig

PAGE = (Path(__file__).parents[2] / "rllib_haml" / "algorithms" / "README.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.split("## From `PPOConfig` to `HAPPOConfig`")[1].split("\n## ")[0].splitlines()
    if line.startswith("| ") and not line.startswith("| what")
]
NONE = object()


def defaults(config: Any) -> dict[str, Any]:
    """What the user can set, with its default; policies by name."""
    values = {key: value for key, value in vars(config).items() if not key.startswith("_")}
    return values | {"policies": sorted(values["policies"])}


def differences(before: dict[str, Any], here: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    pairs = {key: (before.get(key, NONE), here.get(key, NONE)) for key in before | here}
    return {key: pair for key, pair in pairs.items() if repr(pair[0]) != repr(pair[1])}


def of_configs() -> dict[str, tuple[Any, Any]]:
    different = differences(defaults(PPOConfig()), defaults(HAPPOConfig()))
    # Who builds the algorithm, and what it finds out for itself, nobody sets.
    return {key: pair for key, pair in different.items() if key not in ("algo_class", "team")}


def of_networks() -> dict[str, tuple[Any, Any]]:
    """Keys of both, and of this package alone: one that only RLlib has is refused by name."""
    different = differences(asdict(DefaultModelConfig()), asdict(ModelConfig()))
    return {key: pair for key, pair in different.items() if pair[1] is not NONE}


def told(prefix: str) -> dict[str, tuple[str, str, int]]:
    """Per key of the rows that begin with `prefix` its cells, and its place among the row's keys."""
    rows = {}
    for what, before, here in ROWS:
        if re.fullmatch(rf"{prefix}`\w+`(, `\w+`)*", what):
            for place, key in enumerate(re.findall(r"`(\w+)`", what.removeprefix(prefix))):
                rows[key] = before, here, place
    return rows


def said(cell: str, place: int) -> str:
    return re.findall(r"`([^`]+)`", cell)[place]


@pytest.mark.parametrize("prefix, found", [("", of_configs()), ("`model_config`: ", of_networks())])
def test_every_default_that_differs_is_in_the_table(prefix: str, found: dict[str, tuple[Any, Any]]) -> None:
    rows = told(prefix)
    by_behaviour = {"policy_mapping_fn", "action_mask"}
    assert rows.keys() - by_behaviour == found.keys()
    assert len(found) > 10
    for key, (before, here) in found.items():
        theirs, ours, place = rows[key]
        assert said(ours, place) == repr(here), key
        if before is NONE:
            assert theirs.startswith("none"), key
        else:
            assert said(theirs, place) == repr(before), key


def test_the_table_has_three_columns() -> None:
    assert len(ROWS) > 50
    assert {len(row) for row in ROWS} == {3}


def test_control_a_default_that_changes_is_found() -> None:
    changed = HAPPOConfig().training(gamma=0.5)
    assert differences(defaults(PPOConfig()), defaults(changed))["gamma"] == (0.99, 0.5)
