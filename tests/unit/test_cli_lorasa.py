"""`rllib validate` finds in a file what would end a run of LoRASA when it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rllib_haml.cli.app import rllib


def validated(tmp_path: Path, **settings: Any) -> Result:
    file = tmp_path / "mine.yaml"
    config = {"env_config": {"game": "climbing"}, "lora": {"r": 1}, "adapters_from": 0} | settings
    file.write_text(json.dumps({"mine": {"run": "LoRASA", "env": "matrix_game", "config": config}}))
    return CliRunner().invoke(rllib, ["validate", str(file)])


def test_control(tmp_path: Path) -> None:
    done = validated(tmp_path, backbone_checkpoint=str(tmp_path))
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lora": {"target_modules": ["nowhere"]}}, "lora: target_modules names 'nowhere'"),
        ({"lora": {"full_rank_policy": "error"}}, "has at most rank 1, and r=8"),
        ({"lora": {"modules_to_save": "head"}}, "modules_to_save='head': expected a list"),
        ({"lora": None}, "lora=None: expected keys such as"),
        ({"critic_lora": 8}, "critic_lora: given 8, expected"),
        ({"critic_lora": {"target_modules": ["nowhere"]}}, "critic_lora: target_modules names 'nowhere'"),
        ({"adapt_rank": True}, "adapt_rank: given true, expected"),
        ({"total_env_steps": "100"}, 'total_env_steps: given "100", expected'),
        ({"backbone_checkpoint": "/nowhere"}, "backbone_checkpoint='/nowhere' does not exist"),
        (
            {"adapters_checkpoint": "/nowhere", "adapters_from": "plateau"},
            "adapters_checkpoint='/nowhere' does not exist",
        ),
    ],
)
def test_mistakes_exit_with_2(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    done = validated(tmp_path, **settings)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
