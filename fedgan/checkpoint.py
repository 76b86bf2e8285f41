"""Checkpoints: a folder each, whole or not there at all, read without running code.

    checkpoints/round_0010/server.pt        global model, its average, defence, attackers, counters
                           client_0003.pt   one client's networks and optimisers

Rank 0 writes all files, a client at a time, so that no rank ever holds the state of all clients.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedgan.cache import sync_folder, write_atomically
from fedgan.errors import UserError

NAME = re.compile(r"round_(\d+)")
SERVER = "server.pt"
State = dict[str, Any]


class Checkpoints:
    """The checkpoints of one run: `round_0010` and so on in one folder.

    Args:
        folder: made when the run directory is.
        keep: newest checkpoints that stay; the best one stays beside them.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, server: State, clients: Iterator[tuple[int, bytes]]) -> Path:
        """Writes the state after round `server["round"]`: tensors and plain values, and every
        client's as `to_bytes` gives it.

        Then deletes all but the newest `keep` and the best (`server["best"]`). Raises `UserError`
        where there is no room; older checkpoints are then untouched.
        """
        round = server["round"]
        path = self.folder / f"round_{round:04d}"
        for left in self.folder.glob(".*"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        try:
            beside = Path(tempfile.mkdtemp(dir=self.folder, prefix=f".{path.name}."))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        try:
            for number, data in clients:
                write_atomically(beside / client_file(number), partial(_write, data))
            write_atomically(beside / SERVER, partial(torch.save, server))
            beside.chmod(0o755)
            sync_folder(beside)
            self._put(beside, path)
        except UserError as error:
            raise UserError(str(error).replace(str(beside), str(path))) from None
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        self._prune(round, (server.get("best") or {}).get("round"))
        return path

    def _put(self, beside: Path, path: Path) -> None:
        old = path.with_name(f".{path.name}.old")
        try:
            if path.exists():
                path.replace(old)
            beside.replace(path)
            sync_folder(self.folder)
        except OSError as error:
            if old.exists() and not path.exists():
                old.replace(path)
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        finally:
            shutil.rmtree(old, ignore_errors=True)

    def _prune(self, round: int, best: int | None) -> None:
        earlier = [path for path in self.all() if round_of(path) <= round]
        kept = {*earlier[-self.keep :], *(path for path in earlier if round_of(path) == best)}
        for path in self.all():
            if path not in kept:
                _delete(path)

    def forget_after(self, round: int) -> None:
        """Deletes the checkpoints of later rounds, which are about to be played again."""
        for path in reversed(self.all()):
            if round_of(path) > round:
                _delete(path)
        sync_folder(self.folder)

    def has(self, round: int) -> bool:
        """Whether the state after this round is here, whole."""
        path = self.folder / f"round_{round:04d}"
        return path.is_dir() and damage(path) is None

    def all(self) -> list[Path]:
        """Every checkpoint there is, oldest first."""
        found = [path for path in self.folder.glob("round_*") if NAME.fullmatch(path.name)]
        return sorted(found, key=round_of)

    def newest(self) -> tuple[Path, list[str]]:
        """The newest undamaged checkpoint, and a line on each one passed over.

        Raises `UserError` where there is none.
        """
        damaged: list[str] = []
        for path in reversed(self.all()):
            line = damage(path)
            if line is None:
                return path, damaged
            damaged.append(line)
        if damaged:
            raise UserError("; ".join(damaged))
        raise UserError(f"{self.folder}: no checkpoint yet")

    def find(self, name: str | Path | None) -> tuple[Path, list[str]]:
        """A checkpoint by its path, its folder's name, its round, `best` or `newest`, which None
        stands for.

        Raises `UserError` where it is missing, with the rounds that there are, or damaged.
        """
        if name is None or str(name) == "newest":
            return self.newest()
        if str(name) == "best":
            newest, damaged = self.newest()
            best = load_server(newest).get("best")
            if best is None:
                raise UserError(f"{self.folder}: no look was taken yet, so none is the best")
            name = f"round_{best['round']:04d}"
        else:
            damaged = []
        if str(name).isdecimal() and not Path(name).is_dir():
            name = f"round_{int(str(name)):04d}"
        inside = self.folder / name
        path = inside if inside.is_dir() else Path(name)
        if not path.is_dir():
            kept = ", ".join(str(round_of(one)) for one in self.all()) or "none"
            raise UserError(f"checkpoint {name}: no such folder; rounds kept in this run: {kept}")
        line = damage(path)
        if line is not None:
            raise UserError(line)
        return path, damaged


def _delete(path: Path) -> None:
    """Out of sight at once, so that a kill half way leaves nothing that looks like a checkpoint."""
    old = path.with_name(f".{path.name}.old")
    with suppress(OSError):
        path.replace(old)
    shutil.rmtree(old, ignore_errors=True)


def _write(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def round_of(path: Path) -> int:
    """The round of a checkpoint, by its name."""
    return int(path.name.removeprefix("round_"))


def client_file(number: int) -> str:
    """The name of a client's file in a checkpoint."""
    return f"client_{number:04d}.pt"


def to_bytes(state: State) -> bytes:
    """A state as the bytes of a file."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None where nothing is. Reads every byte, as torch itself
    does not look at the checksums."""
    if not path.is_dir():
        return f"checkpoint {path}: no such folder"
    try:
        clients = load_server(path)["clients"]
        for name in [SERVER, *map(client_file, range(clients))]:
            with zipfile.ZipFile(path / name) as archive:
                if archive.testzip() is not None:
                    raise zipfile.BadZipFile
    except UserError as error:
        return str(error)
    except Exception as error:  # zipfile, like torch, raises a dozen kinds
        return f"checkpoint {path}: damaged, or not a checkpoint ({type(error).__name__})"
    return None


def load_server(path: Path) -> State:
    """The server's part of a checkpoint. Raises `UserError` for a missing or damaged file."""
    state = _load(path / SERVER)
    if not {"round", "server", "defense", "clients", "malice", "best", "machine"} <= set(state):
        raise UserError(f"checkpoint {path}: not a checkpoint of fedgan")
    return state


def load_client(path: Path, number: int) -> State:
    """One client's part of a checkpoint. Raises `UserError` for a missing or damaged file."""
    return _load(path / client_file(number))


def _load(path: Path) -> State:
    """Only tensors and plain values are read: a stranger's file runs no code."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged archive
        why = type(error).__name__
        raise UserError(f"checkpoint {path}: damaged, or not a checkpoint ({why})") from None
    if not isinstance(state, dict):
        raise UserError(f"checkpoint {path}: not a checkpoint of fedgan")
    return state
