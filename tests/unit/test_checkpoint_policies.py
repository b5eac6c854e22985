"""Policies are read from whole checkpoints of this package only. No Ray process is started."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fragments import TEAM
from lora_teams import HEADS, OBS, make_batch, outputs, perturb
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_haml.algorithms.warm_start import former_team, shared_policy_of
from rllib_haml.checkpoints.manifest import MANIFEST, Manifest
from rllib_haml.checkpoints.policies import MODULES
from rllib_haml.checkpoints.read import CheckpointError
from rllib_haml.checkpoints.write import write_whole
from rllib_haml.cli.app import rllib
from rllib_haml.modules.actor import Actor
from rllib_haml.modules.adapter import Adapter
from rllib_haml.modules.team import TeamModule

SPACES = OBS, HEADS["box"]


def team(kinds: dict[str, type]) -> Any:
    """Modules of these kinds, whose parameters have moved."""
    settings: dict[type, dict[str, Any]] = {Actor: {"fcnet_hiddens": [8]}}
    settings[Adapter] = settings[Actor] | {"lora": {"r": 2}}
    specs = {name: RLModuleSpec(kind, *SPACES, model_config=settings[kind]) for name, kind in kinds.items()}
    made: Any = MultiRLModuleSpec(multi_rl_module_class=TeamModule, rl_module_specs=specs).build()
    for seed, module in enumerate(made.values()):
        perturb(module, seed)
    return made


def save(path: Path, made: Any) -> Path:
    write_whole(
        path, Manifest.of("LoRASA", TEAM), lambda at: made.save_to_path(str((at / MODULES).resolve()))
    )
    return path


@pytest.fixture(scope="module")
def lorasa(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    made = team({"backbone": Actor, "ann": Adapter, "bob": Adapter})
    return save(tmp_path_factory.mktemp("lorasa") / "checkpoint", made), made


def test_they_act_as_they_did(lorasa: tuple[Path, Any]) -> None:
    path, made = lorasa
    batch = make_batch(made["backbone"])
    found = former_team(str(path))
    assert set(found) == {"backbone", "ann", "bob"}
    for name, module in found.items():
        torch.testing.assert_close(outputs(module, batch), outputs(made[name], batch), rtol=0, atol=0)
    shared = outputs(shared_policy_of(str(path))[0], batch)
    torch.testing.assert_close(shared, outputs(made["backbone"], batch), rtol=0, atol=0)
    assert not torch.equal(outputs(found["ann"], batch), shared), "control: an adapter's policy is another"


def test_what_holds_none(tmp_path: Path) -> None:
    mappo = save(tmp_path / "mappo", team({"shared": Actor}))
    happo = save(tmp_path / "happo", team({"ann": Actor, "bob": Actor}))
    assert isinstance(shared_policy_of(str(mappo))[0], Actor)
    with pytest.raises(ValueError, match="holds no shared policy: expected the checkpoint of MAPPO"):
        shared_policy_of(str(happo))
    for path in (mappo, happo):
        with pytest.raises(ValueError, match="holds no adapters: expected the checkpoint of a LoRASA run"):
            former_team(str(path))
        done = CliRunner().invoke(rllib, ["adapters", "list", str(path)])
        assert (done.exit_code, "has no adapters" in done.output) == (2, True)


def alter_weights(path: Path) -> None:
    """One bit, in a file that can still be read."""
    file = next((path / MODULES / "ann").glob("module_state.*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "fault, message",
    [
        (alter_weights, r"ann/module_state\.\w+ has changed since it was written"),
        (lambda path: (path / MANIFEST).unlink(), "is no checkpoint of an algorithm"),
        (shutil.rmtree, "There is no checkpoint at"),
    ],
    ids=["altered", "without manifest", "gone"],
)
def test_what_is_not_whole_is_refused(
    lorasa: tuple[Path, Any], tmp_path: Path, fault: Callable[[Path], None], message: str
) -> None:
    path = Path(shutil.copytree(lorasa[0], tmp_path / "copy"))
    assert CliRunner().invoke(rllib, ["adapters", "list", str(path)]).exit_code == 0, "control: it was whole"
    fault(path)
    with pytest.raises(CheckpointError, match=f"backbone_checkpoint='.*{message}"):
        shared_policy_of(str(path))
    with pytest.raises(CheckpointError, match=f"adapters_checkpoint='.*{message}"):
        former_team(str(path))
    given, out = str(path), str(tmp_path / "out")
    for arguments in (
        ["list", given],
        ["merge", given, out],
        ["export", given, out],
        ["audit", given],
        ["import", given, str(tmp_path), out, "--agent", "ann"],
    ):
        done = CliRunner().invoke(rllib, ["adapters", *arguments])
        assert done.exit_code == 2, done.output
        assert re.search(message, done.output)
    assert not Path(out).exists()
