"""A grid's directory: what of it is done, who is at work on what.

    grid.yaml            a copy of the grid file, and what the command line changed
    grid.json            a list of {name, labels, run_dir, state}, a cell each
    cells/NAME/          run directories
    configs/NAME.yaml    what each is trained with
    logs/NAME.log        what it has said

The directory itself says what is done: grid.json is a table of contents for readers. So several
machines may work on one grid, by `fedgan grid` or as tasks of SLURM: whoever trains a cell holds a
lock on its log, which the operating system takes back when that process is gone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from fedgan import config
from fedgan.cache import write_atomically, write_json
from fedgan.errors import UserError
from fedgan.grid.cells import Cell, Grid
from fedgan.rundir import CHECKPOINTS, CONFIG, differences, held, is_held, is_locked
from fedgan.runs import FROM_COMMAND_LINE, GRID, SUMMARY
from fedgan.settings import Experiment

State = Literal["finished", "running", "cut off", "failed", "missing"]
CELLS, CONFIGS, LOGS = "cells", "configs", "logs"
ERROR = "fedgan: error: "
"""How the command line begins the one line on what went wrong."""
LAST_BYTES = 20_000


class Folder:
    """The directory of one grid."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.path = grid.folder
        self._texts: dict[str, str] = {}

    def config(self, cell: Cell) -> Path:
        return self.path / CONFIGS / f"{cell.name}.yaml"

    def log(self, cell: Cell) -> Path:
        return self.path / LOGS / f"{cell.name}.log"

    def state(self, cell: Cell) -> State:
        """How far a cell is, as its files and locks say."""
        run_dir = cell.run_dir
        if is_held(run_dir) or is_locked(self.log(cell)):
            return "running"
        if (run_dir / SUMMARY).is_file():
            return "finished"
        if last_error(self.log(cell)):
            return "failed"
        return "cut off" if any((run_dir / CHECKPOINTS).glob("round_*")) else "missing"

    def states(self) -> dict[str, State]:
        """Of all cells, by name."""
        return {cell.name: self.state(cell) for cell in self.grid.cells}

    def changed(self, cell: Cell) -> str | None:
        """What makes a cell another one than that which was begun under its name; None where there
        is no such thing, or it was not begun by a grid."""
        older = self._older(cell)
        if older is None or not (cell.run_dir / CONFIG).is_file():
            return None
        return next(differences(older, cell.experiment), None)

    def _older(self, cell: Cell) -> Experiment | None:
        """What the cell was last prepared with, if that was anything else than it is now."""
        path = self.config(cell)
        if not path.is_file() or path.read_text(encoding="utf-8") == self._text(cell):
            return None
        return config.read(path)

    def _text(self, cell: Cell) -> str:
        if cell.name not in self._texts:
            self._texts[cell.name] = config.dump(cell.experiment)
        return self._texts[cell.name]

    def check(self, *, overwrite: bool) -> None:
        """Raises `UserError` where the directory cannot be this grid's: it holds other things, or a
        cell was begun with other settings and may not be overwritten."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"grid_dir: {self.path} is no folder")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / GRID).is_file():
            raise UserError(f"grid_dir: {self.path} holds something else than a grid; name another")
        for cell in self.grid.cells:
            change = None if overwrite else self.changed(cell)
            if change:
                raise UserError(
                    f"cell {cell.name}: {change}; --overwrite trains it anew, --grid_dir names "
                    "another directory"
                )

    def stale_measures(self) -> str | None:
        """A line on finished cells that were measured otherwise than the grid now asks for."""
        for cell in self.grid.cells:
            older = self._older(cell) if (cell.run_dir / SUMMARY).is_file() else None
            if older is not None:
                for change in differences(older.evaluate, cell.experiment.evaluate, "evaluate."):
                    return f"finished cells stay as they are ({cell.name}: {change})"
        return None

    def prepare(self, *, overwrite: bool) -> None:
        """Writes grid.yaml and the cells' configs; with `overwrite`, run directories of cells with
        other settings go. Raises `UserError` as `check` does, and where it cannot be written."""
        self.check(overwrite=overwrite)
        gone = [cell for cell in self.grid.cells if self.changed(cell)]
        try:
            for cell in gone:
                with held(cell.run_dir):
                    shutil.rmtree(cell.run_dir)
            self.path.mkdir(parents=True, exist_ok=True)
            # Before anything else: without it, whatever is here is not taken for a grid's.
            self.write()
            for part in (CELLS, CONFIGS, LOGS):
                (self.path / part).mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"grid_dir: cannot write {self.path}: {error.strerror}") from None
        text = self.grid.path.read_text(encoding="utf-8")
        for override in self.grid.overrides:
            text += f"\n{FROM_COMMAND_LINE}{override}\n"
        write_text(self.path / "grid.yaml", text)
        for cell in self.grid.cells:
            path, is_done = self.config(cell), (cell.run_dir / SUMMARY).is_file()
            if not path.is_file() or (not is_done and self._older(cell) is not None):
                write_text(path, self._text(cell))

    def write(self) -> None:
        """Writes grid.json as of now."""
        content = [
            {
                "name": cell.name,
                "labels": cell.labels._asdict(),
                "run_dir": f"{CELLS}/{cell.name}",
                "state": self.state(cell),
            }
            for cell in self.grid.cells
        ]
        write_json(self.path / GRID, content)

    def claim(self, cell: Cell) -> BinaryIO | None:
        """The cell's log, open at its end and locked for this process and those that inherit it;
        None where another process has it. Where the file system knows no locks, nothing is.
        Raises `UserError` where it cannot be written."""
        if is_held(cell.run_dir):
            return None
        try:
            file = self.log(cell).open("ab")
        except OSError as error:
            raise UserError(f"cannot write {self.log(cell)}: {error.strerror}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:
            pass
        return file


def last_error(log: Path, start: int = 0) -> str:
    """The error that a cell's log ends with, on one line; empty where it ends otherwise.

    `start` is the byte to read from. A cell that was started again has written something after it.
    """
    told = ("srun: ", "slurmstepd: ")  # what SLURM adds when a task has failed
    lines = [line for line in last_lines(log, start) if not line.startswith(told)]
    return lines[-1].removeprefix(ERROR) if lines and lines[-1].startswith(ERROR) else ""


def last_lines(log: Path, start: int = 0) -> list[str]:
    """The last lines of a log that hold something."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - LAST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def write_text(path: Path, text: str) -> None:
    def write(beside: Path) -> None:
        beside.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def count(states: Iterable[str]) -> str:
    """How many cells there are in each state, in words.

    >>> count(["finished", "missing", "finished"])
    '2 finished, 1 missing'
    """
    seen: Sequence[str] = list(states)
    order = ("finished", "running", "cut off", "failed", "missing")
    return ", ".join(f"{seen.count(state)} {state}" for state in order if state in seen)
