"""Checkpoints: written beside and renamed, the newest few kept, read without running code."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from fedgan.cache import write_atomically
from fedgan.errors import UserError

NAME = re.compile(r"round_(\d+)\.pt")


class Checkpoints:
    """The checkpoints of one run: `round_0010.pt` and so on in one folder.

    Args:
        folder: made when the first one is saved.
        keep: newest checkpoints that stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, round: int, state: dict[str, Any]) -> Path:
        """Writes a state of tensors and plain values, then deletes all but the newest `keep`.

        Raises `UserError` where there is no room; older checkpoints are then untouched.
        """
        path = self.folder / f"round_{round:04d}.pt"
        write_atomically(path, lambda beside: torch.save(state, beside))
        for old in self.all()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def all(self) -> list[Path]:
        """Every checkpoint there is, oldest first."""
        found = [path for path in self.folder.glob("round_*.pt") if NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.stem.removeprefix("round_")))

    def load_newest(self) -> tuple[Path, dict[str, Any], list[str]]:
        """The newest readable checkpoint: its path, its state, and a line on each one passed over.

        Raises `UserError` where there is none.
        """
        damaged: list[str] = []
        for path in reversed(self.all()):
            try:
                return path, load(path), damaged
            except UserError as error:  # noqa: PERF203
                damaged.append(str(error))
        if damaged:
            raise UserError("; ".join(damaged))
        raise UserError(
            f"{self.folder}: no checkpoint yet; start again with `fedgan train ... --overwrite`"
        )


def load(path: Path) -> dict[str, Any]:
    """The state in one checkpoint file. Only tensors and plain values are read: no code runs.

    Raises `UserError` for a missing or damaged file.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch itself does not look at the checksums
                raise zipfile.BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged archive
        why = type(error).__name__
        raise UserError(f"checkpoint {path}: damaged, or not a checkpoint ({why})") from None
    if not isinstance(state, dict) or not {"round", "server", "defense", "clients"} <= set(state):
        raise UserError(f"checkpoint {path}: not a checkpoint of fedgan")
    return state
