"""The images and the compose file name only what is there. (No Docker engine is needed.)"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from project import EXAMPLES, PROJECT, ROOT

from rllib_haml.cli.options import TrainOptions
from rllib_haml.cli.train import train
from rllib_haml.config.document import read_file
from rllib_haml.config.parse import parse_experiments

DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def instructions(dockerfile: Path, name: str) -> list[str]:
    """The arguments of all its instructions of this name, one line each."""
    text = dockerfile.read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def argument(dockerfile: Path, name: str) -> str:
    """The default of a build argument."""
    (value,) = (a.partition("=")[2] for a in instructions(dockerfile, "ARG") if a.startswith(f"{name}="))
    return value


def test_there_is_an_image_with_and_one_without_gpu() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.gpu"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_all_that_is_copied_is_there_and_not_ignored(dockerfile: Path) -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored, "everything is ignored unless it is named"
    sources = [word for copy in instructions(dockerfile, "COPY") for word in copy.split()[:-1]]
    assert {"pyproject.toml", "LICENSE", PROJECT["readme"], "rllib_haml", "tuned_examples"} == set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored


def test_versions_agree_with_the_package_and_among_the_images() -> None:
    for name in ("PYTHON", "TORCH"):
        first, second = (argument(dockerfile, name) for dockerfile in DOCKERFILES)
        assert first == second, f"nodes of one cluster, with different {name}"
    assert argument(DOCKERFILES[0], "PYTHON") in SpecifierSet(PROJECT["requires-python"])
    (torch,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch")
    assert argument(DOCKERFILES[0], "TORCH") in torch.specifier


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_the_extras_that_are_installed_exist(dockerfile: Path) -> None:
    (extras,) = re.findall(r'pip install .*"\.\[(.*)\]"', dockerfile.read_text(encoding="utf-8"))
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert {"mujoco", "mpe"} <= set(extras.split(","))


def test_services_build_images_that_exist() -> None:
    assert {"head", "worker", "train"} <= set(SERVICES)
    assert SERVICES["worker"]["deploy"]["replicas"] == 2
    for service in SERVICES.values():
        context = DOCKER / service["build"]["context"]
        assert context.resolve() == ROOT
        dockerfile = context / service["build"]["dockerfile"]
        assert dockerfile.is_file()
        assert service["image"] == f"rllib-haml:{dockerfile.suffix[1:]}", "one tag for one image"
        declared = {arg.partition("=")[0] for arg in instructions(dockerfile, "ARG")}
        assert set(service["build"].get("args", {})) <= declared
        assert set(service.get("depends_on", {})) <= set(SERVICES)


def test_what_others_wait_for_says_when_it_is_healthy() -> None:
    waited_for = {
        name
        for service in SERVICES.values()
        for name, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_healthy"
    }
    assert waited_for == {"head", "worker"}
    assert all("healthcheck" in SERVICES[name] for name in waited_for)


def test_the_object_store_fits_into_shared_memory() -> None:
    for service in SERVICES.values():
        commands = f"{service['command']} {service.get('entrypoint')}"
        (store,) = re.findall(r"--object-store-memory=(\d+)", commands)
        assert service["shm_size"] == "2gb"
        assert int(store) <= 0.95 * 2**31, "beyond this Ray falls back to the disk"


def test_the_training_service_runs_a_valid_command() -> None:
    """Its options are `rllib train`'s, and its file and overrides pass the strict configuration."""
    program, command, *arguments = SERVICES["train"]["command"]
    assert (program, command) == ("rllib", "train")
    options = dict(train.make_context("train", arguments).params)
    assert options.pop("words") == ()
    assert options["auto_resume"], "what is started again goes on"
    document = read_file(ROOT / options.pop("file"))
    assert options["storage_path"] in {volume.partition(":")[2] for volume in SERVICES["train"]["volumes"]}
    TrainOptions(**options).override(document)
    (experiment,) = parse_experiments(document, allow_eval=False)
    cpus = 1 + experiment.config.num_env_runners + experiment.config.num_learners
    (per_worker,) = re.findall(r"--num-cpus=(\d+)", SERVICES["worker"]["command"])
    assert cpus <= SERVICES["worker"]["deploy"]["replicas"] * int(per_worker), "or it waits for ever"


@pytest.mark.parametrize("file", [*DOCKERFILES, DOCKER / "compose.yaml"], ids=lambda path: path.name)
def test_examples_named_in_comments_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    named = re.findall(r"tuned_examples/(\S+)\.yaml|example run (\S+)", text)
    assert named
    assert {path or identifier for path, identifier in named} <= EXAMPLES
