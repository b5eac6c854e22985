"""`rllib adapters` on a real checkpoint: what it writes can be read, and acts the same."""

from __future__ import annotations

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


def test_an_audit_tells_how_far_they_are_apart(trained: Any, tmp_path: Path) -> None:
    picture = tmp_path / "drift.png"
    done = command("audit", trained[0], "--plot", picture)
    assert done.exit_code == 0, done.output
    assert all(name in done.output for name in ("agent_0", "agent_1", "agent_2"))
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["list", "nowhere"], "is no checkpoint of an algorithm"),
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
