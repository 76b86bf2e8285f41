"""The screen: progress while it works, a verdict in tables at the end."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fedgan.tracking.base import Observer, RoundRecord, RunInfo


class Screen(Observer):
    """A bar on a terminal, one plain line a round elsewhere; tables at the end."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None

    def on_start(self, info: RunInfo) -> None:
        self._info = info
        self._rounds = info.settings.federation.rounds
        self._left = self._rounds - info.first_round + 1
        self._started = time.perf_counter()
        self._round_ends: list[float] = []
        self._encoded = 0
        self._trained = 0
        self._this_round = 0
        self.console.print(partition_table(info))
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            self._task = self._progress.add_task(
                f"round {info.first_round}/{self._rounds}",
                total=self._left,
                note="",
            )
            self._progress.start()

    def on_client(self, round: int, client: int, images: int) -> None:
        if self._progress is not None:
            images *= self._info.world  # the other ranks are about as far
            self._trained += images
            self._this_round += images
            elapsed = time.perf_counter() - self._started
            self._progress.update(
                self._task,
                completed=len(self._round_ends)
                + min(1.0, self._this_round / self._info.images_in_round),
                description=f"round {round}/{self._rounds}, client {client}",
                note=f"{self._trained / elapsed:.0f} images/s{self._time_left(round - 1)}",
            )

    def on_encoded(self, images: int, total: int) -> None:
        if self._progress is None and self._encoded == 0 and len(self._round_ends) == self._left:
            self.console.print(f"measuring {total} generated images", highlight=False)
        self._encoded += images
        done = min(self._encoded, total)
        if self._progress is not None:
            self._progress.update(self._task, description=f"measuring {done}/{total} images")
        if self._encoded >= total:
            self._encoded = 0

    def on_round(self, record: RoundRecord) -> None:
        self._round_ends.append(time.perf_counter())
        self._this_round = 0
        if self._progress is not None:
            self._progress.update(self._task, completed=len(self._round_ends))
            if record.figures:
                self._progress.console.print(self._line(record), highlight=False)
            return
        self.console.print(self._line(record), highlight=False, soft_wrap=True)

    def on_end(self, summary: dict[str, Any]) -> None:
        self._stop()
        print_summary(self.console, summary)

    def close(self) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _line(self, record: RoundRecord) -> str:
        parts = [f"round {record.round}/{self._rounds}"]
        scalars = record.scalars()
        parts += [f"{key} {scalars[key]:.3f}" for key in ("d_loss", "g_loss") if key in scalars]
        flagged = [str(row["client"]) for row in record.client_rows() if row["flagged"]]
        if flagged:
            parts.append(
                f"flagged {', '.join(flagged)}" + (" (acted)" if record.verdict.acted else "")
            )
        left_out = [report for report in record.reports if report.status != "ok"]
        parts += [f"client {report.client} left out: {report.status}" for report in left_out]
        parts += [
            f"{key} {value:.3g}"
            for key, value in record.figures.items()
            if key == "presence" or key.endswith("_ratio")
        ]
        parts.append(f"{record.images_per_second:.0f} images/s{self._time_left(record.round)}")
        return "  ".join(parts)

    def _time_left(self, done: int) -> str:
        played = done - self._info.first_round + 1
        if played < 1 or not self._round_ends:
            return ""
        seconds = (self._round_ends[-1] - self._started) / len(self._round_ends)
        return f", {clock(seconds * (self._rounds - done))} left"


class LogFile(Screen):
    """log.txt: what the screen shows where it is no terminal, and every warning."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        super().__init__(
            Console(file=self._file, width=120, force_terminal=False, color_system=None)
        )
        self._handler = logging.StreamHandler(self._file)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("fedgan").addHandler(self._handler)

    def on_round(self, record: RoundRecord) -> None:
        super().on_round(record)
        self._file.flush()

    def close(self) -> None:
        super().close()
        logging.getLogger("fedgan").removeHandler(self._handler)
        self._file.close()


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    >>> clock(75), clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


LABELS = {"presence": "trigger presence", "presence_amplitude": "its median amplitude"}


def partition_table(info: RunInfo) -> Table:
    """Who holds what."""
    table = Table(title=f"who holds what: {info.settings.partition.name}", title_justify="left")
    table.add_column("client", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    shown = info.classes[:8]
    for name in shown:
        table.add_column(escape(name), justify="right")
    for client, counts in enumerate(info.counts):
        name = f"{client} [red]malicious[/]" if client in info.malicious else str(client)
        table.add_row(name, str(info.n_images[client]), *map(str, counts[: len(shown)]))
    return table


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """What happened, for somebody who did not watch."""
    console.print(figures_table(summary["figures"], summary["final"]["encoder"]["name"]))
    console.print(_clients_table(summary))
    for note in summary["notes"]:
        console.print(f"[yellow]note[/] {escape(note)}", highlight=False)
    console.print(
        f"{summary['rounds']} rounds in {clock(summary['seconds'])}, "
        f"{summary['images_per_second']:.0f} images/s on {summary['device']}",
        highlight=False,
    )
    run_dir = summary["run_dir"]
    console.print(f"pictures  {run_dir}/{summary['last_samples']}", highlight=False, soft_wrap=True)
    console.print(f"          {run_dir}/curves.png", highlight=False, soft_wrap=True)
    console.print(f"results   {run_dir}", highlight=False, soft_wrap=True)


def figures_table(figures: dict[str, float], encoder: str) -> Table:
    table = Table(title=f"the global generator, seen by {encoder}", title_justify="left")
    for column in ("figure", "value", "floor", "ratio to floor"):
        is_name = column == "figure"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=not is_name)
    for key, value in figures.items():
        if key.endswith(("_floor", "_ratio", "_low", "_high", "_real")):
            continue
        floor, ratio = figures.get(f"{key}_floor"), figures.get(f"{key}_ratio")
        shown = f"{value:.4g}"
        if key == "presence":
            low, high = figures["presence_low"], figures["presence_high"]
            shown = f"{value:.1%} ({low:.1%} to {high:.1%})"
        elif key == "presence_amplitude":
            shown = f"{value:.1%}"
        table.add_row(
            LABELS.get(key, key),
            shown,
            "" if floor is None else f"{floor:.4g}",
            "" if ratio is None else f"{ratio:.2f}",
        )
        if f"{key}_real" in figures:
            table.add_row(f"{key} of real images", f"{figures[f'{key}_real']:.4g}", "", "")
    return table


def _clients_table(summary: dict[str, Any]) -> Table:
    table = Table(title=f"the defence: {summary['defense']}", title_justify="left")
    table.add_column("client", no_wrap=True)
    columns = ("images", "rounds flagged", "first", "last", "lost weight in")
    for column in (*columns, "final weight", "fair weight"):
        table.add_column(column, justify="right")
    for row in summary["clients"]:
        name = f"{row['client']} [red]malicious[/]" if row["malicious"] else str(row["client"])
        rounds = row["flagged_rounds"]
        table.add_row(
            name,
            str(row["n_images"]),
            f"{len(rounds)} of {row['rounds']}",
            str(rounds[0]) if rounds else "",
            str(rounds[-1]) if rounds else "",
            str(len(row["suppressed_rounds"])),
            "" if row["final_weight"] is None else f"{row['final_weight']:.3f}",  # never drawn
            f"{row['fair_weight']:.3f}",
        )
    return table
