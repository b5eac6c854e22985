"""`rllib adapters` on a real checkpoint: what it writes can be read, and acts the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule
from running_state import assert_same_everywhere
from test_lorasa import STEPS, config, weights

from rllib_haml import LoRASA
from rllib_haml.cli.app import rllib
from rllib_haml.modules.actor import Actor


def command(*arguments: Any) -> Result:
    return CliRunner().invoke(rllib, ["adapters", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A checkpoint with adapters that have moved, what they decide, and their weights."""
    algo = config(adapters_from=0, lr=1e-2).build_algo()
    algo.train()
    obs = {Columns.OBS: torch.randn(7, 18, generator=torch.Generator().manual_seed(0))}
    decided = {name: decide(algo.get_module(name), obs) for name in ("agent_0", "agent_1", "agent_2")}
    path = Path(algo.save_to_path(str(tmp_path_factory.mktemp("lorasa") / "checkpoint")))
    found = weights(algo)
    algo.stop()
    return path, obs, decided, found


def decide(module: Any, obs: dict[str, torch.Tensor]) -> np.ndarray:
    with torch.no_grad():
        return module.forward_inference(obs)[Columns.ACTION_DIST_INPUTS].numpy()


def test_listing_names_every_agent(trained: Any) -> None:
    lines = command("list", trained[0]).output.splitlines()
    assert [line.split()[0] for line in lines] == ["agent_0", "agent_1", "agent_2"]
    assert all("rank 2" in line and "% of the backbone" in line for line in lines)


def test_a_merged_policy_acts_alone(trained: Any, tmp_path: Path) -> None:
    path, obs, decided, _ = trained
    assert command("merge", path, tmp_path).exit_code == 0
    for name, expected in decided.items():
        module = RLModule.from_checkpoint(str(tmp_path / name))
        assert type(module) is Actor
        np.testing.assert_allclose(decide(module, obs), expected, atol=1e-6)
    assert np.abs(decided["agent_0"] - decided["agent_1"]).max() > 1e-4, "control: agents differ"


def test_an_exported_adapter_can_be_another_agents(trained: Any, tmp_path: Path) -> None:
    """agent_1's files imported as agent_0's: the copy plays agent_1 twice, the original is untouched."""
    path, obs, decided, before = trained
    assert command("export", path, tmp_path / "files", "--agent", "agent_1").exit_code == 0
    assert {f.name for f in (tmp_path / "files" / "agent_1").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    out = tmp_path / "other"
    done = command("import", path, tmp_path / "files" / "agent_1", out, "--agent", "agent_0")
    assert done.exit_code == 0, done.output
    algo = LoRASA.from_checkpoint(str(out))
    np.testing.assert_allclose(decide(algo.get_module("agent_0"), obs), decided["agent_1"], atol=1e-6)
    np.testing.assert_allclose(decide(algo.get_module("agent_2"), obs), decided["agent_2"], atol=1e-6)
    found = weights(algo)
    assert all(np.array_equal(found["backbone"][k], v) for k, v in before["backbone"].items())
    algo.stop()
    original = LoRASA.from_checkpoint(str(path))
    np.testing.assert_allclose(decide(original.get_module("agent_0"), obs), decided["agent_0"], atol=1e-6)
    original.stop()


def test_an_imported_adapter_trains_as_one_loaded_into_the_run(trained: Any, tmp_path: Path) -> None:
    """Without its agent's former moments, with everybody else's."""
    path, files, out = trained[0], tmp_path / "files", tmp_path / "other"
    assert command("export", path, files, "--agent", "agent_1").exit_code == 0
    assert command("import", path, files / "agent_1", out, "--agent", "agent_0").exit_code == 0
    imported, loaded = LoRASA.from_checkpoint(str(out)), LoRASA.from_checkpoint(str(path))
    loaded.load_adapter("agent_0", files / "agent_1")
    moments = {name: _moments(imported, name) for name in ("agent_0", "agent_1", "critic")}
    assert [len(found) > 0 for found in moments.values()] == [False, True, True]
    for algo in (imported, loaded):
        algo.train()
    assert_same_everywhere(imported, loaded)
    imported.stop()
    loaded.stop()


def test_an_adapter_that_names_no_backbone_needs_a_word(trained: Any, tmp_path: Path) -> None:
    """PEFT does not keep this package's key in `adapter_config.json` when it saves an adapter."""
    path, _, _, before = trained
    assert command("export", path, tmp_path, "--agent", "agent_1").exit_code == 0
    file = tmp_path / "agent_1" / "adapter_config.json"
    values = json.loads(file.read_text())
    del values["rllib_haml"]
    file.write_text(json.dumps(values))
    arguments = ["import", path, tmp_path / "agent_1", tmp_path / "out", "--agent", "agent_0"]
    done = command(*arguments)
    assert done.exit_code == 2
    assert "--any-backbone" in done.output
    assert command(*arguments, "--any-backbone").exit_code == 0
    algo = LoRASA.from_checkpoint(str(path))
    with pytest.raises(ValueError, match="any_backbone=True"):
        algo.load_adapter("agent_2", tmp_path / "agent_1")
    algo.load_adapter("agent_2", tmp_path / "agent_1", any_backbone=True)
    given = weights(algo)["agent_2"]
    assert all(np.array_equal(value, before["agent_1"][key]) for key, value in given.items())
    algo.stop()
    file.write_text("{")
    done = command(*arguments[:-3], tmp_path / "other", *arguments[-2:])
    assert done.exit_code == 2
    assert "adapter_config.json cannot be read" in done.output


def _moments(algo: Any, module: str) -> Any:
    return algo.learner_group._learner.get_optimizer(module).state


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"adapters_from": 10 * STEPS}, "the team still trains the shared network"),
        ({"adapters_from": 0, "adapter_mode": "continue_shared"}, "adapter_mode: continue_shared"),
    ],
)
def test_no_adapter_for_a_team_that_trains_its_shared_network(
    trained: Any, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    """As `load_adapter` refuses it: the adapter would act, and the learner train the backbone without it."""
    algo = config(**settings).build_algo()
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    assert command("export", path, tmp_path).exit_code == 0
    with pytest.raises(ValueError, match=message):
        algo.load_adapter("agent_0", tmp_path / "agent_1")
    algo.stop()
    done = command("import", path, tmp_path / "agent_1", tmp_path / "out", "--agent", "agent_0")
    assert done.exit_code == 2
    assert message in done.output
    assert not (tmp_path / "out").exists()


def test_an_audit_plays_and_tells_how_far_they_are_apart(trained: Any, tmp_path: Path) -> None:
    """On a Ray of its own; the KL is that of the agents' policies where they go, as a training's metric."""
    picture = tmp_path / "drift.png"
    script = "import sys; sys.argv[0] = 'rllib'; from rllib_haml.cli import main; main()"
    arguments = ["adapters", "audit", str(trained[0]), "--steps", "100", "--plot", str(picture)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    agents, layers = (part.splitlines() for part in done.stdout.strip().split("\n\n"))
    place = agents[0].split().index("KL")
    for line, agent in zip(agents[1:], ("agent_0", "agent_1", "agent_2"), strict=True):
        assert line.split()[0] == agent
        assert 1e-6 < float(line.split()[place]) < 1
    assert [line.split()[0] for line in layers[1:-1]] == ["network.1.weight", "network.4.weight"]
    assert all(float(cell) > 0 for line in layers[1:-1] for cell in line.split()[1:])
    assert layers[-1] == str(picture)
    assert picture.stat().st_size > 1000


def test_an_audit_without_playing_compares_weights_alone(trained: Any) -> None:
    done = command("audit", trained[0], "--steps", "0")
    assert done.exit_code == 0, done.output
    head, *lines = done.output.split("\n\n")[0].splitlines()
    assert [line.split()[head.split().index("KL")] for line in lines] == ["-"] * 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["list", "nowhere"], "There is no checkpoint at"),
        (
            ["export", "CHECKPOINT", "x", "--agent", "agent_9"],
            "has no adapter 'agent_9'. Did you mean `agent_",
        ),
        (["import", "CHECKPOINT", "nothing", "new", "--agent", "agent_0"], "nothing"),
        (["import", "CHECKPOINT", "x", "CHECKPOINT", "--agent", "agent_0"], "exists already"),
    ],
)
def test_mistakes_exit_with_2(trained: Any, arguments: list[str], message: str, tmp_path: Path) -> None:
    done = command(*(str(trained[0]) if a == "CHECKPOINT" else a for a in arguments))
    assert done.exit_code == 2
    assert message in done.output
    assert not Path("new").exists()
