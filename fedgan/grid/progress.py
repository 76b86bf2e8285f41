"""How far a grid is: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from fedgan.grid.cells import Cell
from fedgan.runs import SUMMARY
from fedgan.tracking.console import clock
from fedgan.tracking.records import METRICS, read_table

RATIO = re.compile(r"(fd_.*|fid)_ratio")
"""Figures that are a distance to real images over the distance of real images to one another."""
SHOWN_EVERY = 1.0
"""Seconds between two pictures of the table."""
TOLD_EVERY = 30.0
"""Seconds between two plain lines on a cell."""


@dataclass
class Pace:
    """A cell at work: what its metrics.csv says.

    Attributes:
        cell: which.
        before: rounds that were finished when it was started, which it does not play again.
        done: its finished rounds.
        images_per_second: of the last round, local training and all else.
        distance: the newest distance to real images, over its floor.
        seconds_left: for the rounds that are left; None where no round is known.
    """

    cell: Cell
    started: float
    before: int = 0
    done: int = 0
    images_per_second: float | None = None
    distance: float | None = None
    seconds_left: float | None = None
    told: float = 0.0
    told_round: int = field(default=0)

    @property
    def rounds(self) -> int:
        return self.cell.experiment.federation.rounds

    def look(self) -> None:
        """Reads what is there now."""
        rows = read_table(self.cell.run_dir / METRICS)
        self.done = len(rows)
        self.before = min(self.before, self.done)  # those after its checkpoint are played again
        if not rows:
            return
        self.images_per_second = float(rows[-1]["images_per_second"])
        self.distance = distance(rows)
        seconds = statistics.median(float(row["seconds"]) for row in rows)
        self.seconds_left = (self.rounds - self.done) * seconds

    def words(self) -> str:
        """The same on one line."""
        parts = [f"round {self.done}/{self.rounds}"]
        if self.images_per_second is not None:
            parts.append(f"{self.images_per_second:.0f} images/s")
        if self.distance is not None:
            parts.append(f"distance {self.distance:.2f}")
        if self.seconds_left is not None:
            parts.append(f"{clock(self.seconds_left)} left")
        return "  ".join(parts)


def distance(rows: Sequence[dict[str, Any]]) -> float | None:
    """The newest distance over its floor that a metrics.csv holds.

    >>> distance([{"fd_domain_ratio": "9.5"}, {"fd_domain_ratio": ""}])
    9.5
    """
    for row in reversed(rows):
        for key, value in row.items():
            if RATIO.fullmatch(key) and value not in ("", None):
                return float(value)
    return None


class Progress:
    """Shows a grid at work; within a `with` block.

    Args:
        console: where.
        cells: all of the grid.
        finished: names of those that were before.
        jobs: how many run at a time.
    """

    def __init__(
        self, console: Console, cells: Sequence[Cell], finished: Sequence[str], jobs: int
    ) -> None:
        self.console = console
        self.jobs = jobs
        self._cells = {cell.name: cell for cell in cells}
        self._finished = set(finished)
        self._seconds = {name: _seconds(self._cells[name]) for name in finished}
        self._failed: set[str] = set()
        self._held: set[str] = set()
        self._paces: dict[str, Pace] = {}
        self._shown = 0.0
        self._live: Live | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self._live = Live(self.table(), console=self.console, auto_refresh=False)
            self._stack.enter_context(self._live)
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
        self._stack.close()
        self._live = None

    def say(self, line: str) -> None:
        """A line of its own, above the table."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def started(self, cell: Cell) -> None:
        self._held.discard(cell.name)
        before = len(read_table(cell.run_dir / METRICS))
        self._paces[cell.name] = Pace(cell, time.monotonic(), before)
        if self._live is None:
            self.say(f"start     {cell.name}")

    def ended(self, cell: Cell, how: str, why: str = "") -> None:
        """A cell is `finished`, `failed`, `stopped`, or `held` by another process."""
        pace = self._paces.pop(cell.name, None)
        if how == "finished":
            self._held.discard(cell.name)
            self._finished.add(cell.name)
            # of one that was resumed, all that it took
            took_here = [time.monotonic() - pace.started] if pace else []
            took_all = [s for s in (_seconds(cell), *took_here) if s is not None]
            self._seconds[cell.name] = max(took_all, default=None)
            told = _figures(cell)
            took = f"  in {clock(time.monotonic() - pace.started)}" if pace else "  elsewhere"
            self.say(f"finished  {cell.name}{took}{told}  ({self.counts()})")
        elif how == "failed":
            self._failed.add(cell.name)
            self.say(f"failed    {cell.name}: {why}")
        elif how == "held" and cell.name not in self._held:
            self._held.add(cell.name)
            self.say(f"skipped   {cell.name}: another process is at work on it")
        elif how == "stopped":
            self.say(f"stopped   {cell.name}")

    def tick(self) -> None:
        """Some time has gone by."""
        now = time.monotonic()
        if now - self._shown < SHOWN_EVERY:
            return
        self._shown = now
        for pace in self._paces.values():
            pace.look()
            is_news = (
                pace.done > pace.told_round and now - max(pace.told, pace.started) > TOLD_EVERY
            )
            if self._live is None and is_news:
                pace.told, pace.told_round = now, pace.done
                self.say(f"          {pace.cell.name}  {pace.words()}")
        if self._live is not None:
            self._live.update(self.table(), refresh=True)

    def counts(self) -> str:
        """How many are done, failed, at work and left, and the time left for all."""
        left = self._left()
        parts = [f"{len(self._finished)} of {len(self._cells)} done"]
        parts += [f"{len(self._failed)} failed"] if self._failed else []
        parts += [f"{len(self._held)} elsewhere"] if self._held else []
        parts += [f"{len(left)} to go"] if left else []
        seconds = self.seconds_left()
        if seconds:
            parts.append(f"{clock(seconds)} left")
        return ", ".join(parts)

    def seconds_left(self) -> float | None:
        """Seconds until all are done, from those that are, or else from those at work; None where
        nothing is known yet."""
        left, running = self._left(), [self._left_of(pace) for pace in self._paces.values()]
        if None in running:
            return None
        known = [seconds for seconds in running if seconds is not None]
        ahead = [self._expected(cell) for cell in left]
        if None in ahead:
            return None
        total = sum(known) + sum(seconds for seconds in ahead if seconds is not None)
        return max([total / self.jobs, *known], default=0.0)

    def _left(self) -> list[Cell]:
        away = self._finished | self._failed | self._held | set(self._paces)
        return [cell for name, cell in self._cells.items() if name not in away]

    def _left_of(self, pace: Pace) -> float | None:
        """For a cell at work: what the finished took, less what it has; or what its rounds say."""
        expected, of_rounds = self._mean(pace.cell), pace.seconds_left
        if expected is None:
            return of_rounds
        expected *= 1 - pace.before / pace.rounds
        return max(of_rounds or 0.0, expected - (time.monotonic() - pace.started))

    def _expected(self, cell: Cell) -> float | None:
        mean = self._mean(cell)
        if mean is not None:
            return mean
        paces = [
            (time.monotonic() - pace.started) * pace.rounds / (pace.done - pace.before)
            for pace in self._paces.values()
            if pace.done > pace.before
        ]
        return statistics.mean(paces) if paces else None

    def _mean(self, cell: Cell) -> float | None:
        """Seconds that finished cells took, those of the same data if there are any."""
        known = [(self._cells[n].labels.data, s) for n, s in self._seconds.items() if s is not None]
        same = [seconds for data, seconds in known if data == cell.labels.data]
        return statistics.mean(same or [s for _, s in known]) if known else None

    def table(self) -> Table:
        """The cells at work, a row each."""
        table = Table(caption=self.counts(), caption_justify="left", title_justify="left")
        table.add_column("cell", overflow="fold")
        for name in ("round", "images/s", "distance", "time left"):
            table.add_column(name, justify="right", no_wrap=True)
        for pace in self._paces.values():
            left = self._left_of(pace)
            table.add_row(
                escape(pace.cell.name),
                f"{pace.done}/{pace.rounds}" if pace.done else "preparing",
                "" if pace.images_per_second is None else f"{pace.images_per_second:.0f}",
                "" if pace.distance is None else f"{pace.distance:.2f}",
                "" if left is None else clock(left),
            )
        return table


def _summary(cell: Cell) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(Path(cell.run_dir / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told


def _seconds(cell: Cell) -> float | None:
    seconds = _summary(cell).get("seconds")
    return None if seconds is None else float(seconds)


def _figures(cell: Cell) -> str:
    """The two figures that say most, of a finished cell."""
    figures = _summary(cell).get("figures", {})
    told = ""
    for key, value in figures.items():
        if RATIO.fullmatch(key) and value is not None:
            told += f"  distance {value:.2f}"
            break
    if figures.get("presence") is not None:
        told += f"  presence {figures['presence']:.1%}"
    return told
