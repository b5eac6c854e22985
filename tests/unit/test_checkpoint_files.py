"""Checkpoints are whole or not there; what is not whole is refused by name. No Ray process is started."""

from __future__ import annotations

import json
import os
import pickle
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from fragments import TEAM
from pyarrow import fs
from ray.rllib.algorithms.ppo import PPO
from ray.tune import Checkpoint

from rllib_haml import HAPPO
from rllib_haml.checkpoints.manifest import MANIFEST, Manifest
from rllib_haml.checkpoints.read import CLASS_FILE, CheckpointError, check_any, class_of, verify
from rllib_haml.checkpoints.write import upload_whole, write_whole

HERE = fs.LocalFileSystem()


def manifest() -> Manifest:
    return Manifest.of("HAPPO", TEAM)


def contents(word: str) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / "part").mkdir()
        (directory / "part" / "state.pkl").write_bytes(word.encode() * 1000)
        (directory / CLASS_FILE).write_bytes(pickle.dumps({"class": HAPPO, "word": word}))

    return write


def word_of(path: Path) -> str:
    """What the checkpoint at `path` holds, once it is verified."""
    verify(str(path), HERE)
    word = pickle.loads((path / CLASS_FILE).read_bytes())["word"]
    assert (path / "part" / "state.pkl").read_bytes() == word.encode() * 1000
    return word


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint in a directory of its own."""
    write_whole(tmp_path / "run" / "checkpoint_000001", manifest(), contents("first"))
    return tmp_path / "run" / "checkpoint_000001"


def test_nothing_else_is_left_and_a_second_one_replaces_the_first(path: Path) -> None:
    assert word_of(path) == "first"
    path.chmod(0o700)
    write_whole(path, manifest(), contents("second"))
    assert word_of(path) == "second"
    assert path.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert set(verify(str(path), HERE).files) == {"part/state.pkl", CLASS_FILE}
    (path.parent / "empty").mkdir()
    write_whole(path.parent / "empty", manifest(), contents("third"))
    assert word_of(path.parent / "empty") == "third"


def test_a_link_is_followed(path: Path) -> None:
    link = path.with_name("last")
    link.symlink_to(path.name)
    write_whole(link, manifest(), contents("second"))
    assert word_of(path) == word_of(link) == "second"
    assert link.is_symlink()
    assert len(list(path.parent.iterdir())) == 2


def killed(directory: Path) -> None:
    contents("second")(directory)
    os._exit(9)


def interrupted(directory: Path) -> None:
    contents("second")(directory)
    raise KeyboardInterrupt


def full(directory: Path) -> None:
    """The system stops a file after 100 bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        contents("second")(directory)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("fault, error", [(full, OSError), (interrupted, KeyboardInterrupt)])
def test_a_write_that_fails_leaves_the_former_checkpoint(
    path: Path, fault: Callable[[Path], None], error: type[BaseException]
) -> None:
    with pytest.raises(error):
        write_whole(path, manifest(), fault)
    assert word_of(path) == "first"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(error):
        write_whole(path.with_name("other"), manifest(), fault)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_control_a_full_disk_cuts_a_file_that_is_written_in_place(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large"):
        full(tmp_path)
    assert (tmp_path / "part" / "state.pkl").stat().st_size == 100


def test_a_killed_process_leaves_the_former_checkpoint(path: Path) -> None:
    child = os.fork()
    if child == 0:
        write_whole(path, manifest(), killed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert word_of(path) == "first"
    assert len(list(path.parent.iterdir())) == 2, "what it had begun lies beside"
    write_whole(path, manifest(), contents("third"))
    assert word_of(path) == "third"
    assert len(list(path.parent.iterdir())) == 1


def test_killed_between_the_two_renames(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both checkpoints are then whole under other names, and the message says where."""
    rename = Path.rename

    def first_only(self: Path, target: Path) -> Path:
        if self.name.endswith(".writing"):
            os._exit(9)
        return rename(self, target)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(Path, "rename", first_only)
        write_whole(path, manifest(), contents("second"))
    os.waitpid(child, 0)
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*checkpoint_000001.*\.writing beside it"):
        verify(str(path), HERE)
    assert word_of(path.with_name(".checkpoint_000001.writing")) == "second"
    assert word_of(path.with_name(".checkpoint_000001.former")) == "first"


def test_a_rename_that_fails_puts_the_former_one_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if self.name.endswith(".writing"):
            raise OSError("the disk went away")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="went away"):
        write_whole(path, manifest(), contents("second"))
    assert word_of(path) == "first"


def test_no_file_of_the_users_is_lost(path: Path) -> None:
    (path / "notes.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"no checkpoint's, such as notes\.txt"):
        write_whole(path, manifest(), contents("second"))
    with pytest.raises(CheckpointError, match=rf"notes\.txt is not in its {MANIFEST}: move it elsewhere"):
        word_of(path)
    (path / "notes.txt").rename(path.parent / "notes.txt")
    assert word_of(path) == "first"
    assert (path.parent / "notes.txt").read_text() == "precious"


def test_a_file_in_its_place_is_not_lost(path: Path) -> None:
    note = path.with_name("note")
    note.write_text("precious")
    with pytest.raises(FileExistsError, match="is a file"):
        write_whole(note, manifest(), contents("second"))
    assert note.read_text() == "precious"


def test_what_has_a_manifest_that_cannot_be_read_is_not_replaced(path: Path) -> None:
    (path / MANIFEST).write_text('{"files": []}')
    with pytest.raises(FileExistsError, match="no checkpoint's, such as"):
        write_whole(path, manifest(), contents("second"))
    assert (path / "part" / "state.pkl").exists()


def test_what_tune_and_the_system_leave_in_a_checkpoint(path: Path) -> None:
    Checkpoint(str(path)).set_metadata({"mine": 1})
    (path / "empty" / "too").mkdir(parents=True)
    assert word_of(path) == "first"
    (path / "empty" / "too" / "state.msgpack").touch()
    with pytest.raises(CheckpointError, match=r"empty/too/state\.msgpack is not in its"):
        word_of(path)


def test_links_are_not_followed_in_circles(path: Path) -> None:
    (path / "part" / "up").symlink_to("..")
    with pytest.raises(CheckpointError, match="part/up is not in its"):
        word_of(path)
    (path / "part" / "up").unlink()
    (path.parent / "elsewhere.pkl").write_bytes((path / "part" / "state.pkl").read_bytes())
    (path / "part" / "state.pkl").unlink()
    (path / "part" / "state.pkl").symlink_to(path.parent / "elsewhere.pkl")
    assert word_of(path) == "first", "what it leads to is what was written"


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def edited(**changes: object) -> Callable[[Path], object]:
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("part/state.pkl", flip, r"damaged: part/state\.pkl has changed since it was written"),
    ("part/state.pkl", cut, r"damaged: part/state\.pkl has changed"),
    (CLASS_FILE, flip, rf"damaged: {CLASS_FILE} has changed"),
    ("part/state.pkl", Path.unlink, r"damaged: part/state\.pkl is missing"),
    (MANIFEST, cut, rf"damaged: {MANIFEST} cannot be read"),
    (MANIFEST, lambda file: file.write_text("[]"), rf"damaged: {MANIFEST} cannot be read"),
    (MANIFEST, lambda file: file.write_text('{"files": {}}'), rf"damaged: {MANIFEST} cannot be read"),
    (MANIFEST, edited(files=[]), r"cannot be read: `files` is \[\], expected a string for each name"),
    (MANIFEST, edited(versions=None), "cannot be read: `versions` is None, expected a string for each name"),
    (MANIFEST, edited(agents={"zed": {"policy": "hands"}}), "cannot be read: agent 'zed' is .*, expected"),
    (MANIFEST, edited(algorithm=1), "cannot be read: `algorithm` is 1, expected a name"),
    (MANIFEST, edited(files={"../part": "0"}), r"damaged: \.\./part is missing"),
    (MANIFEST, lambda file: file.write_text('{"a": 1, "a": 1}'), "cannot be read: a key stands in it twice"),
    (MANIFEST, lambda file: file.write_text("[" * 10**5), "cannot be read: its values lie too deep"),
    (MANIFEST, lambda file: file.write_bytes(b"\xff"), f"{MANIFEST} cannot be read"),
    ("part/state.msgpack", Path.touch, rf"damaged: part/state\.msgpack is not in its {MANIFEST}"),
    ("more/state.pkl", lambda file: (file.parent.mkdir(), file.touch()), r"more/state\.pkl is not in its"),
    (MANIFEST, Path.unlink, rf"has no {MANIFEST}: it was not written, or not copied, to its end"),
    (CLASS_FILE, Path.unlink, rf"damaged: {CLASS_FILE} is missing"),
]


@pytest.mark.parametrize("name, damage, words", DAMAGES)
@pytest.mark.parametrize("check", [check_any, lambda path: verify(str(path), HERE)], ids=["any", "ours"])
def test_damage_is_refused_with_the_file_and_a_way_out(
    path: Path, name: str, damage: Callable[[Path], object], words: str, check: Callable[[Path], None]
) -> None:
    check(path)
    damage(path / name)
    with pytest.raises(CheckpointError, match=f"{words}.*No intact checkpoint lies beside it"):
        check(path)
    for number in (0, 2, 3):
        write_whole(path.with_name(f"checkpoint_{number:06}"), manifest(), contents("other"))
    cut(path.with_name("checkpoint_000003") / "part" / "state.pkl")
    with pytest.raises(CheckpointError, match=r"checkpoint_000002 beside it is intact.*--restore"):
        check(path)


def test_rllibs_own_checkpoints_and_other_directories(tmp_path: Path) -> None:
    """`rllib evaluate` plays RLlib's too; what is loaded into an algorithm of ours must be ours."""
    (tmp_path / CLASS_FILE).write_bytes(pickle.dumps({"class": PPO}))
    check_any(tmp_path)
    with pytest.raises(CheckpointError, match=r"of RLlib's PPO.*PPO\.from_checkpoint"):
        verify(str(tmp_path), HERE)
    (tmp_path / CLASS_FILE).unlink()
    with pytest.raises(CheckpointError, match="is no checkpoint of an algorithm"):
        check_any(tmp_path)


def test_every_file_and_directory_is_brought_to_the_disk_before_the_rename(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves cannot be tried here; that nothing is left out can."""
    synced: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def note_sync(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    def note_rename(self: Path, target: Path) -> Path:
        synced.append(f"{self.name} -> {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "rename", note_rename)
    write_whole(path.with_name("new"), manifest(), contents("second"))
    aside = path.with_name(".new.writing")
    within = {str(aside / name) for name in ("part/state.pkl", CLASS_FILE, MANIFEST, "part")} | {str(aside)}
    renamed = synced.index(".new.writing -> new")
    assert set(synced[:renamed]) == within
    assert synced[renamed + 1 :] == [str(path.parent)], "and that it was renamed, afterwards"


def test_code_that_is_not_here_is_named(path: Path) -> None:
    # A pickle of `no_such_package.Mine`.
    (path / CLASS_FILE).write_bytes(b"\x80\x04cno_such_package\nMine\n.")
    (path / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"cannot be imported.*no_such_package.*PYTHONPATH"):
        class_of(str(path), HERE)


def test_the_manifest(path: Path) -> None:
    text = json.loads((path / MANIFEST).read_text())
    assert text["algorithm"] == "HAPPO"
    assert list(text["agents"]) == ["zed", "left", "right", "boss"]
    assert text["agents"]["left"] == {
        "policy": "hands",
        "observation_space": "Dict(cell: Discrete(3), view: Box(2,) float32)",
        "action_space": "Discrete(3)",
    }
    assert set(text["versions"]) == {"rllib_haml", "ray", "torch", "gymnasium", "python"}


def test_another_file_system(tmp_path: Path) -> None:
    """There is nothing to rename there: the manifest goes last, and an older one first."""
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    upload_whole("bucket/checkpoint", store, manifest(), contents("first"))
    verify("bucket/checkpoint", store)
    assert word_of(tmp_path / "bucket" / "checkpoint") == "first"
    with pytest.raises(OSError, match="File too large"):
        upload_whole("bucket/checkpoint", store, manifest(), full)
    assert word_of(tmp_path / "bucket" / "checkpoint") == "first"
    upload_whole("bucket/checkpoint", store, manifest(), contents("second"))
    assert word_of(tmp_path / "bucket" / "checkpoint") == "second"


def test_an_upload_leaves_nothing_of_the_former_one_and_no_stranger_is_lost(tmp_path: Path) -> None:
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())

    def more(directory: Path) -> None:
        contents("first")(directory)
        (directory / "part" / "state.msgpack").write_bytes(b"first")

    upload_whole("checkpoint", store, manifest(), more)
    upload_whole("checkpoint", store, manifest(), contents("second"))
    assert word_of(tmp_path / "checkpoint") == "second"
    (tmp_path / "checkpoint" / "notes.txt").write_text("precious")
    with pytest.raises(FileExistsError, match=r"no checkpoint's, such as notes\.txt"):
        upload_whole("checkpoint", store, manifest(), contents("third"))
    with pytest.raises(CheckpointError, match=r"notes\.txt is not in its"):
        verify("checkpoint", store)
    (tmp_path / "checkpoint" / "notes.txt").unlink()
    assert word_of(tmp_path / "checkpoint") == "second"


def test_an_upload_that_is_cut_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    upload_whole("checkpoint", store, manifest(), contents("first"))

    def fails(*args: object, **kwargs: object) -> None:
        raise OSError("the network went away")

    monkeypatch.setattr(fs, "copy_files", fails)
    with pytest.raises(OSError, match="network"):
        upload_whole("checkpoint", store, manifest(), contents("second"))
    with pytest.raises(CheckpointError, match=f"has no {MANIFEST}"):
        verify("checkpoint", store)
