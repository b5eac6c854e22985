"""What a built wheel holds and says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from email.message import Message
from email.parser import Parser
from importlib import import_module
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from project import EXAMPLES, PROJECT, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """A wheel of the working tree, built as pip builds it, with the setuptools that is installed."""
    source = tmp_path_factory.mktemp("source") / "tree"
    source.mkdir()
    for name in ("pyproject.toml", PROJECT["readme"], "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    for name in ("rllib_haml", "tuned_examples"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    out = source.parent / "wheels"
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", out, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return ZipFile(built)


@pytest.fixture(scope="module")
def metadata(wheel: ZipFile) -> Message:
    return Parser().parsestr(dist_info(wheel, "METADATA"))


def dist_info(wheel: ZipFile, name: str) -> str:
    (path,) = (n for n in wheel.namelist() if n.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_one_wheel_for_every_python(wheel: ZipFile) -> None:
    assert Path(str(wheel.filename)).name == f"rllib_haml-{PROJECT['version']}-py3-none-any.whl"


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: ZipFile) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "rllib_haml").rglob("*.py")
        if "__pycache__" not in path.parts
    }
    expected |= {"rllib_haml/py.typed"}
    expected |= {f"rllib_haml/tuned_examples/{example}.yaml" for example in EXAMPLES}
    assert {n for n in wheel.namelist() if ".dist-info/" not in n} == expected


def test_the_examples_lie_where_the_command_looks(wheel: ZipFile) -> None:
    example = import_module("rllib_haml.cli.example")
    looked = f"rllib_haml/{example._DIRECTORY.name}"
    assert {n for n in wheel.namelist() if n.startswith(f"{looked}/")}
    assert set(example._examples()) == EXAMPLES


def test_the_metadata_is_complete(metadata: Message) -> None:
    assert metadata["Name"] == "rllib-haml"
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Summary"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert {"mujoco", "mpe", "dev"} <= set(PROJECT["optional-dependencies"])


def test_its_links_say_where_they_lead(metadata: Message) -> None:
    links = dict(line.split(", ", 1) for line in metadata.get_all("Project-URL", []))
    assert {"LoRASA (Zhang et al. 2025)", "RLlib"} <= links.keys()
    assert all(url.startswith("https://") for url in links.values())


def test_what_the_last_line_tells_to_run_comes_along(metadata: Message) -> None:
    """`tensorboard --logdir`, after a run."""
    assert "TensorBoard  tensorboard --logdir" in (ROOT / "rllib_haml/cli/report.py").read_text()
    requirements = map(Requirement, metadata.get_all("Requires-Dist", []))
    assert "tensorboard" in {one.name for one in requirements if one.marker is None}


def test_the_package_is_the_command_too() -> None:
    done = subprocess.run([sys.executable, "-m", "rllib_haml", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"train", "evaluate", "validate"} <= set(done.stdout.split())


def test_the_licence_travels_along(wheel: ZipFile, metadata: Message) -> None:
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert dist_info(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_pythons(metadata: Message) -> None:
    supported = SpecifierSet(metadata["Requires-Python"])
    named = {
        version
        for classifier in metadata.get_all("Classifier", [])
        if (version := classifier.rpartition(" :: ")[2]).startswith("3.")
    }
    assert named == {f"3.{minor}" for minor in range(20) if f"3.{minor}.0" in supported}
    assert named == {"3.10", "3.11", "3.12", "3.13"}


def test_ray_is_bounded_to_the_release_whose_hooks_are_used(metadata: Message) -> None:
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    (ray,) = (r for r in requirements if r.name == "ray")
    assert ray.extras == {"rllib"}
    assert "2.60.0" in ray.specifier
    assert "2.61.0" not in ray.specifier
    assert "2.59.0" not in ray.specifier
    optional = {r.name for r in requirements if r.marker and "extra" in str(r.marker)}
    assert {"gymnasium-robotics", "mujoco", "mpe2"} <= optional


def test_the_command(wheel: ZipFile) -> None:
    assert "rllib = rllib_haml.cli:main" in dist_info(wheel, "entry_points.txt").splitlines()
    assert callable(import_module("rllib_haml.cli").main)
