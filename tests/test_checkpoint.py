"""Checkpoints: whole or not at all, the newest few, and read without running what is in them."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess

import pytest
import torch

from fedgan.cache import write_atomically
from fedgan.checkpoint import Checkpoints, load
from fedgan.errors import UserError


def state(round, size=10):
    return {
        "round": round,
        "server": {"parameters": torch.full((size,), float(round))},
        "defense": {"counts": {0: round}},
        "clients": {0: {"steps": round}},
    }


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    path = Checkpoints(tmp_path, 2).save(7, state(7))
    assert path.name == "round_0007.pt"
    found = load(path)
    assert found["round"] == 7
    assert found["defense"] == {"counts": {0: 7}}
    assert torch.equal(found["server"]["parameters"], torch.full((10,), 7.0))


def test_the_newest_few_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, 2)
    for round in (1, 2, 999, 10000):
        checkpoints.save(round, state(round))
    assert names(tmp_path) == ["round_0999.pt", "round_10000.pt"]
    assert checkpoints.load_newest()[0].name == "round_10000.pt"


def test_a_write_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, 2)
    checkpoints.save(1, state(1))
    before = (tmp_path / "round_0001.pt").read_bytes()

    def half(thing, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", half)
    for round in (1, 2):
        with pytest.raises(UserError, match=rf"round_000{round}\.pt: No space left"):
            checkpoints.save(round, state(round))
    assert names(tmp_path) == ["round_0001.pt"]
    assert (tmp_path / "round_0001.pt").read_bytes() == before


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
    checkpoints = Checkpoints(small_disk, 2)
    checkpoints.save(1, state(1))
    with pytest.raises(UserError, match=r"cannot write .*round_0002\.pt"):
        checkpoints.save(2, state(2, size=200_000))
    assert names(small_disk) == ["round_0001.pt"]
    assert checkpoints.load_newest()[1]["round"] == 1


def damage(path, how):
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "a bit flipped":
        data = bytearray(path.read_bytes())
        where = bytes(data).index(torch.full((1,), 2.0).numpy().tobytes() * 4)
        data[where] ^= 64
        path.write_bytes(bytes(data))
    else:
        torch.save({"weights": torch.zeros(3)}, path)


@pytest.mark.parametrize("how", ["cut short", "empty", "a bit flipped", "of another program"])
def test_a_damaged_one_is_passed_over(tmp_path, how):
    checkpoints = Checkpoints(tmp_path, 3)
    for round in (1, 2):
        checkpoints.save(round, state(round))
    damage(tmp_path / "round_0002.pt", how)
    path, found, damaged = checkpoints.load_newest()
    assert (path.name, found["round"]) == ("round_0001.pt", 1)
    assert len(damaged) == 1
    assert "round_0002.pt" in damaged[0]


def test_all_damaged_or_none_at_all(tmp_path):
    checkpoints = Checkpoints(tmp_path, 3)
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoints.load_newest()
    for round in (1, 2):
        checkpoints.save(round, state(round))
        damage(tmp_path / f"round_000{round}.pt", "cut short")
    with pytest.raises(UserError, match=r"(?s)round_0002.*round_0001"):
        checkpoints.load_newest()
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "round_0009.pt")


class Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))]
)
def test_code_in_a_checkpoint_is_not_run(tmp_path, save):
    trap = tmp_path / "trap"
    save({**state(1), "extra": Code(str(trap))}, tmp_path / "round_0001.pt")
    with pytest.raises(UserError, match="damaged, or not a checkpoint"):
        load(tmp_path / "round_0001.pt")
    assert not trap.exists()


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "round_best.pt").write_bytes(b"mine")
    checkpoints = Checkpoints(tmp_path, 1)
    for round in (1, 2):
        checkpoints.save(round, state(round))
    assert names(tmp_path) == ["round_0002.pt", "round_best.pt"]
