"""A thousand damaged or doctored checkpoints: each loads or is refused, and runs nothing. No Ray starts."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pyarrow import fs
from ray import cloudpickle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPO

from rllib_haml import HAML, HAPPO
from rllib_haml.checkpoints.manifest import MANIFEST
from rllib_haml.checkpoints.named_class import named_class
from rllib_haml.checkpoints.policies import MODULES, modules_of
from rllib_haml.checkpoints.read import CLASS_FILE, CheckpointError, check_any, verify
from rllib_haml.checkpoints.whole import WholeCheckpoints
from rllib_haml.checkpoints.write import write_whole
from rllib_haml.cli.app import rllib

STORED = Path(__file__).parents[1] / "data" / "checkpoint" / "happo_climbing"
HERE = fs.LocalFileSystem()


class Planted:
    """Its pickle makes a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored checkpoint without its samplers' part: the fewer files, the sooner all is tried."""
    made = tmp_path_factory.mktemp("whole") / "checkpoint"

    def write(directory: Path) -> None:
        shutil.copytree(STORED, directory, dirs_exist_ok=True)
        shutil.rmtree(directory / "env_runner")

    write_whole(made, verify(str(STORED), HERE), write)
    return made


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run" / "checkpoint_000001"))


def files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file() or p.is_symlink())


# What may happen to a checkpoint. Each is given it, a source of chance, and what would run if it were loaded.


def flip(path: Path, chance: random.Random, planted: bytes) -> None:
    file = chance.choice(files(path))
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def cut(path: Path, chance: random.Random, planted: bytes) -> None:
    file = chance.choice(files(path))
    data = file.read_bytes()
    file.write_bytes(data[: chance.randrange(len(data))])


def lose(path: Path, chance: random.Random, planted: bytes) -> None:
    chance.choice(files(path)).unlink()


def rename(path: Path, chance: random.Random, planted: bytes) -> None:
    file = chance.choice(files(path))
    others = [file.name.upper(), f"{file.name}~", file.stem, "\udcff\udcfe", "a\nb", "x" * 200]
    file.rename(file.with_name(chance.choice(others)))


def swap(path: Path, chance: random.Random, planted: bytes) -> None:
    one, other = chance.sample(files(path), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def replace(path: Path, chance: random.Random, planted: bytes) -> None:
    chance.choice([file for file in files(path) if file.suffix == ".pkl"]).write_bytes(planted)


def add(path: Path, chance: random.Random, planted: bytes) -> None:
    """Beside what RLlib reads, also under the name that it would rather read."""
    file = chance.choice([file for file in files(path) if file.suffix == ".pkl"])
    new = chance.choice(
        [file.with_suffix(".msgpack"), file.with_name("x.pkl"), path / "new" / "deep" / file.name]
    )
    new.parent.mkdir(parents=True, exist_ok=True)
    new.write_bytes(planted)


def link(path: Path, chance: random.Random, planted: bytes) -> None:
    outside = path.parent / "outside"
    outside.mkdir(exist_ok=True)
    (outside / "state.pkl").write_bytes(planted)
    file = chance.choice(files(path))
    target = chance.choice([outside, outside / "state.pkl", path, Path("nowhere"), Path(file.name)])
    if chance.random() < 0.7:
        file.unlink()
        file.symlink_to(target)
    else:
        file.with_name("link").symlink_to(target)


def pipe(path: Path, chance: random.Random, planted: bytes) -> None:
    """Opening it would wait for ever."""
    file = chance.choice(files(path))
    if chance.random() < 0.5:
        file.unlink()
        os.mkfifo(file)
    else:
        os.mkfifo(file.with_name("pipe"))


def bare(path: Path, chance: random.Random, planted: bytes) -> None:
    """Without a manifest, and with a class file that runs code where RLlib's would name a class."""
    (path / MANIFEST).unlink()
    data = (path / CLASS_FILE).read_bytes()
    at = chance.randrange(len(data))
    begins = chance.choice([b"", data[:at], pickle.dumps({"class": HAPPO})[:-1]])
    (path / CLASS_FILE).write_bytes(begins + chance.choice([planted, planted[2:], b"", data[at:]]))


ODD: list[Any] = [
    None, True, 0, -1, 1.5, float("nan"), 10**40, "", "x", "\ud800", "\x00", [], {}, [[]], {"": None},
    "../../outside", "/etc/passwd",
]  # fmt: skip


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, sub in inner for place in _places(sub, (*at, key)))]


def edit(path: Path, chance: random.Random, planted: bytes) -> None:
    """One value of the manifest is another, is gone, or has a neighbour."""
    manifest = json.loads((path / MANIFEST).read_text())
    # Without the root; sections as often as what stands in them.
    places = _places(manifest)[1:]
    *above, last = chance.choice([p for p in places if len(p) == chance.choice([1, 1, 2, 2, 3])] or places)
    holder = manifest
    for key in above:
        holder = holder[key]
    match chance.randrange(4):
        case 0:
            del holder[last]
        case 1:
            holder[chance.choice(["../x", "/x", "x", "\ud800", "\x00", "x" * 300])] = chance.choice(ODD)
        case 2:
            holder[chance.choice(["../x", "X"])] = holder.pop(last)
        case _:
            holder[last] = chance.choice(ODD)
    (path / MANIFEST).write_text(json.dumps(manifest))


def scribble(path: Path, chance: random.Random, planted: bytes) -> None:
    """The manifest is no JSON of ours at all."""
    text = (path / MANIFEST).read_text()
    nested = "[" * 10 ** chance.randrange(1, 6)
    deep = "[" * 950 + "]" * 950
    (path / MANIFEST).write_bytes(
        chance.choice(
            [
                b"",
                b"\xff\xfe\x00",
                text.encode("utf-16"),
                text.encode("utf-8-sig"),
                nested.encode(),
                text.replace("{", '{"a": ' + nested, 1).encode(),
                text.replace('"algorithm": "HAPPO"', f'"algorithm": {deep}').encode(),
                text.replace('"algorithm"', '"algorithm": "PPO", "algorithm"', 1).encode(),
                text.replace('"files": {', '"files": {"x": "y", "x": "z",', 1).encode(),
                b"9" * 10000,
                planted,
            ]
        )
    )


FAULTS: list[Callable[[Path, random.Random, bytes], None]] = [
    flip, cut, lose, rename, swap, replace, add, link, pipe, bare, edit, edit, edit, scribble,
]  # fmt: skip


WAYS: dict[str, Callable[[Path], object]] = {
    "verify": lambda path: verify(str(path), HERE),
    "check_any": check_any,
    "modules_of": modules_of,
    "from_checkpoint": lambda path: HAPPO.from_checkpoint(path),
    "restore a part": lambda path: object.__new__(HAPPO).restore_from_path(path / MODULES, component="x"),
}


def outcome(load: Callable[[Path], object], path: Path) -> str:
    """Whether it loads, or how it is refused; anything else ends the test."""
    try:
        load(path)
    except CheckpointError as error:
        str(error).encode()  # can be printed
        return "refused"
    except FileNotFoundError:
        return "nothing there"
    return "loads"


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was verified would be built and loaded, which takes seconds."""
    monkeypatch.setattr(Algorithm, "from_checkpoint", lambda path, **_: modules_of(path))
    monkeypatch.setattr(Algorithm, "restore_from_path", lambda *_, **__: None)
    monkeypatch.setattr(HAML, "restore_from_path", WholeCheckpoints.restore_from_path)
    monkeypatch.setattr(HAML, "_before_restoring", lambda _: None)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.usefixtures("nothing_is_built")
def test_a_damaged_checkpoint_is_refused_or_loads_and_runs_nothing(
    seed: int, whole: Path, path: Path, canary: Path
) -> None:
    chance, planted, outcomes = random.Random(seed), pickle.dumps(Planted(canary)), []
    for _ in range(100):
        shutil.rmtree(path.parent)
        shutil.copytree(whole, path)
        fault, (way, load) = chance.choice(FAULTS), chance.choice(list(WAYS.items()))
        fault(path, chance, planted)
        outcomes.append(outcome(load, path))
        assert not canary.exists(), (fault.__name__, way)
    assert outcomes.count("refused") > 50
    assert "loads" in outcomes, "an edited version, for example"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("nothing_is_built")
def test_control_whole_ones_load(way: str, path: Path) -> None:
    assert outcome(WAYS[way], path) == "loads"


def test_control_what_is_planted_would_run_if_its_digest_were_forged(path: Path, canary: Path) -> None:
    """A manifest tells of damage, not of malice, and so say the docs."""
    (path / CLASS_FILE).write_bytes(pickle.dumps(Planted(canary)))
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][CLASS_FILE] = hashlib.sha256((path / CLASS_FILE).read_bytes()).hexdigest()
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="cannot be read"):
        HAPPO.from_checkpoint(path)
    assert canary.is_dir()


@pytest.mark.parametrize("command", ["evaluate", "train", "adapters"])
def test_commands_run_nothing_of_a_class_file_without_a_manifest(
    command: str, path: Path, canary: Path
) -> None:
    (path / MANIFEST).unlink()
    (path / CLASS_FILE).write_bytes(pickle.dumps({"class": Planted(canary)}))
    arguments = {
        "evaluate": ["evaluate", str(path)],
        "train": ["train", "--run", "HAPPO", "--env", "matrix_game", "--restore", str(path)],
        "adapters": ["adapters", "list", str(path)],
    }
    done = CliRunner().invoke(rllib, arguments[command])
    assert done.exit_code == 2, done.output
    assert f"has no {MANIFEST}" in done.output
    assert not canary.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_class_is_told_by_its_name(protocol: int, canary: Path) -> None:
    def told(value: Any) -> Any:
        return named_class(pickle.dumps(value, protocol))

    if protocol == 0:  # no dict of it begins as RLlib's do
        assert told({"class": PPO}) is None
        return
    stock = {"class": PPO, "ctor_args_and_kwargs": ((), {})}
    assert told(stock) == ("ray.rllib.algorithms.ppo.ppo", "PPO")
    assert told({"class": HAPPO}) == ("rllib_haml.algorithms.happo", "HAPPO")
    for other in (
        PPO,
        {"ctor": PPO},
        {"class": Planted(canary)},
        {"class": "ray.rllib"},
        Planted(canary),
        [],
    ):
        assert told(other) is None
    assert not canary.exists()
    # By value: unpickling it makes the class.
    assert named_class(cloudpickle.dumps({"class": type("Mine", (PPO,), {"__module__": "__main__"})})) is None
    of_a_trial = type("PPO", (PPO,), {"__module__": "__main__"})
    assert named_class(cloudpickle.dumps({"class": of_a_trial})) == (PPO.__module__, "PPO")
