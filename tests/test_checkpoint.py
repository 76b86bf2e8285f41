"""Checkpoints: whole or not at all, the newest few and the best, read without running code."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
from pathlib import Path

import pytest
import torch

from fedgan import checkpoint
from fedgan.cache import write_atomically
from fedgan.checkpoint import Checkpoints, load_client, load_server, to_bytes
from fedgan.errors import UserError


def save(folder, round, keep=2, size=10, best=None):
    server = {
        "round": round,
        "server": {"parameters": torch.full((size,), float(round))},
        "defense": {"counts": {0: round}},
        "clients": 2,
        "best": best and {"round": best, "distance": 1.0, "by": "fd_domain of 8 images"},
        "machine": {"torch": "2"},
        "malice": {},
    }
    clients = ((n, to_bytes({"steps": round, "w": torch.full((10,), 2.0)})) for n in (0, 1))
    return Checkpoints(folder, keep).save(server, clients)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.pt")}


def test_what_is_saved_is_loaded(tmp_path):
    path = save(tmp_path, 7)
    assert path.name == "round_0007"
    assert names(path) == ["client_0000.pt", "client_0001.pt", "server.pt"]
    found = load_server(path)
    assert (found["round"], found["defense"]) == (7, {"counts": {0: 7}})
    assert torch.equal(found["server"]["parameters"], torch.full((10,), 7.0))
    assert load_client(path, 1)["steps"] == 7


def test_the_newest_few_are_kept(tmp_path):
    for round in (1, 2, 999, 10000):
        save(tmp_path, round)
    assert names(tmp_path) == ["round_0999", "round_10000"]
    assert Checkpoints(tmp_path, 2).newest()[0].name == "round_10000"


def test_the_best_is_kept_beside_them(tmp_path):
    for round, best in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
        save(tmp_path, round, best=best)
    assert names(tmp_path) == ["round_0002", "round_0004", "round_0005"]
    assert Checkpoints(tmp_path, 2).find("best")[0].name == "round_0002"
    save(tmp_path, 6, best=6)
    assert names(tmp_path) == ["round_0005", "round_0006"]


def test_no_best_before_a_look(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(UserError, match="none is the best"):
        Checkpoints(tmp_path, 2).find("best")


def test_rounds_that_are_played_again_replace_the_later_ones(tmp_path):
    for round in (1, 2, 3, 4):
        save(tmp_path, round, keep=4)
    save(tmp_path, 2, keep=4, size=20)
    assert names(tmp_path) == ["round_0001", "round_0002"]
    assert len(load_server(tmp_path / "round_0002")["server"]["parameters"]) == 20


@pytest.mark.parametrize("which", [None, "newest", "round_0002", "path"])
def test_found_by_any_name(tmp_path, which):
    for round in (1, 2):
        save(tmp_path, round)
    name = tmp_path / "round_0002" if which == "path" else which
    assert Checkpoints(tmp_path, 2).find(name)[0] == tmp_path / "round_0002"


def test_a_write_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    save(tmp_path, 1)
    before = contents(tmp_path)

    def half(thing, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "_write", half)
    for round in (1, 2):
        with pytest.raises(UserError, match=rf"round_000{round}/client_0000\.pt: No space left"):
            save(tmp_path, round)
    assert contents(tmp_path) == before
    assert names(tmp_path) == ["round_0001"]


def test_what_a_killed_process_left_is_no_checkpoint_and_goes(tmp_path):
    save(tmp_path, 1)
    left = tmp_path / ".round_0002.abc"
    left.mkdir()
    (left / "client_0000.pt").write_bytes(b"half")
    assert Checkpoints(tmp_path, 2).newest()[0].name == "round_0001"
    save(tmp_path, 2)
    assert names(tmp_path) == ["round_0001", "round_0002"]


def test_a_process_killed_while_writing_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def killed(beside):
        beside.write_text("half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, killed)
    assert path.read_text() == "old"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB, where the machine lets the tests mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk):
    save(small_disk, 1)
    before = contents(small_disk)
    with pytest.raises(UserError, match=r"cannot write .*round_0002/server\.pt"):
        save(small_disk, 2, size=200_000)
    assert contents(small_disk) == before
    assert Checkpoints(small_disk, 2).newest()[0].name == "round_0001"


def damage(path, how):
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "missing":
        path.unlink()
    elif how == "a bit flipped":
        data = bytearray(path.read_bytes())
        where = bytes(data).index(torch.full((1,), 2.0).numpy().tobytes() * 4)
        data[where] ^= 64
        path.write_bytes(bytes(data))
    elif path.name == "server.pt":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(b"no archive at all")


@pytest.mark.parametrize("file", ["server.pt", "client_0001.pt"])
@pytest.mark.parametrize(
    "how", ["cut short", "empty", "missing", "a bit flipped", "of another program"]
)
def test_a_damaged_one_is_passed_over(tmp_path, file, how):
    for round in (1, 2):
        save(tmp_path, round)
    damage(tmp_path / "round_0002" / file, how)
    path, damaged = Checkpoints(tmp_path, 3).newest()
    assert path.name == "round_0001"
    assert len(damaged) == 1
    assert "round_0002" in damaged[0]
    assert not Checkpoints(tmp_path, 3).has(2)
    assert Checkpoints(tmp_path, 3).has(1)


def test_all_damaged_or_none_at_all(tmp_path):
    checkpoints = Checkpoints(tmp_path, 3)
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoints.newest()
    for round in (1, 2):
        damage(save(tmp_path, round) / "server.pt", "cut short")
    with pytest.raises(UserError, match=r"(?s)round_0002.*round_0001"):
        checkpoints.newest()
    with pytest.raises(UserError, match=r"round_0009: .* rounds kept in this run: 1, 2"):
        checkpoints.find("9")
    assert checkpoints.find(save(tmp_path, 3))[0] == checkpoints.find("3")[0]


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("file", ["server.pt", "client_0001.pt"])
@pytest.mark.parametrize(
    "write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))]
)
def test_code_in_a_checkpoint_is_not_run(tmp_path, write, file):
    trap, path = tmp_path / "trap", save(tmp_path, 1)
    load = load_server if file == "server.pt" else lambda folder: load_client(folder, 1)
    write({**load(path), "extra": Code(str(trap))}, path / file)
    with pytest.raises(UserError, match="damaged, or not a checkpoint"):
        load(path)
    assert not trap.exists()


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "round_best").mkdir()
    for round in (1, 2):
        save(tmp_path, round, keep=1)
    assert names(tmp_path) == ["round_0002", "round_best"]


def test_a_rename_that_fails_loses_no_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 3)
    before = contents(tmp_path)
    replace, calls = Path.replace, []

    def second_fails(self, target):
        if self.is_dir():
            calls.append(self)
            if len(calls) == 2:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", second_fails)
    with pytest.raises(UserError, match="quota"):
        save(tmp_path, 3)
    assert contents(tmp_path) == before


def test_later_rounds_are_forgotten(tmp_path):
    for round in (1, 2, 3, 4):
        save(tmp_path, round, keep=9)
    Checkpoints(tmp_path, 9).forget_after(2)
    assert names(tmp_path) == ["round_0001", "round_0002"]
