"""The screen: progress while it works, a verdict in tables at the end."""

from __future__ import annotations

import logging
import shlex
import time
from pathlib import Path
from typing import Any, Literal

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
        self._trained = 0
        self._this_round = 0
        self._told: set[str] = set()
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

    def on_measured(self, what: str, done: int, total: int, closely: bool) -> None:
        if self._progress is not None:
            self._progress.update(self._task, description=f"{what}: {done}/{total}")
        elif closely and what not in self._told:
            self._told.add(what)
            self.console.print(f"{what}: {total}", highlight=False)

    def on_round(self, record: RoundRecord) -> None:
        self._told.clear()
        self._round_ends.append(time.perf_counter())
        self._this_round = 0
        console = self.console
        if self._progress is not None:
            self._progress.update(self._task, completed=len(self._round_ends))
            console = self._progress.console
        if self._progress is None or record.figures:
            console.print(self._line(record), highlight=False, soft_wrap=True)
        for exhibit in record.verdict.exhibits:
            console.print(f"  {exhibit.words}", highlight=False, markup=False, soft_wrap=True)
        if record.verdict.correction is not None:
            console.print(f"  {_cleaned_up(record)}", highlight=False, soft_wrap=True)

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
            clients = "client" if len(flagged) == 1 else "clients"
            acted = " (acted)" if record.verdict.acted else ""
            parts.append(f"flagged {clients} {', '.join(flagged)}{acted}")
        left_out = [report for report in record.reports if report.status != "ok"]
        parts += [f"client {report.client} left out: {report.status}" for report in left_out]
        parts += [
            f"{key} {value:.3g}"
            for key, value in record.figures.items()
            if key == "presence" or (key.startswith(("fd_", "fid")) and key.endswith("_ratio"))
        ]
        parts.append(f"{record.images_per_second:.0f} images/s{self._time_left(record.round)}")
        return "  ".join(parts)

    def _time_left(self, done: int) -> str:
        played = done - self._info.first_round + 1
        if played < 1 or not self._round_ends:
            return ""
        seconds = (self._round_ends[-1] - self._started) / len(self._round_ends)
        return f", {clock(seconds * (self._rounds - done))} left"


class Measuring:
    """What `fedgan evaluate` shows while it measures: a bar on a terminal, elsewhere a line for
    each thing it does. Within, a callable that is told what is done, how much, and of how much."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._doing = ""
        self._progress: Progress | None = None

    def __enter__(self) -> Measuring:
        return self

    def __call__(self, what: str, done: int, total: int) -> None:
        if not self.console.is_terminal:
            if what != self._doing:
                self.console.print(f"{what}: {total}", highlight=False)
        else:
            self._show(what, done, total)
        self._doing = what

    def _show(self, what: str, done: int, total: int) -> None:
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self._progress = Progress(*columns, console=self.console, transient=True)
            self._task = self._progress.add_task(what, total=total)
            self._progress.start()
        self._progress.update(
            self._task, description=f"{what}: {done}/{total}", completed=done, total=total
        )

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()


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


def _cleaned_up(record: RoundRecord) -> str:
    """What the defence has done about what excluded clients had put into the global model."""
    if record.undone:
        back_to = record.verdict.back_to
        return f"back to the model before round {back_to}: {record.undone} rounds are undone"
    return "taken off the model: what the excluded put in since they are suspected"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    >>> clock(75), clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


LABELS = {
    "presence": "trigger presence",
    "presence_amplitude": "its median amplitude",
    "region_ratio": "error in its place, over elsewhere",
    "detection_auroc": "AUROC of the defence's scores",
    "detection_auroc_by_round": "within a round",
    "detection_tpr": "malicious client-rounds flagged",
    "detection_fpr": "benign client-rounds flagged",
    "detection_benign_weight_lost": "weight lost: benign clients",
    "detection_benign_weight_lost_worst": "weight lost: worst benign client",
    "detection_malicious_weight_lost": "weight lost: malicious clients",
    "detection_silenced": "attackers silenced at the end",
    "detection_rounds_until_silenced": "rounds until then (all, if never)",
    "detection_rounds_until_first_silenced": "rounds until first silenced",
}


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
    print_evaluation(console, summary)
    console.print(_clients_table(summary))
    rounds = "1 round" if summary["rounds"] == 1 else f"{summary['rounds']} rounds"
    console.print(
        f"{rounds} in {clock(summary['seconds'])}, "
        f"{summary['images_per_second']:.0f} images/s on {summary['device']}",
        highlight=False,
    )
    run_dir = summary["run_dir"]
    console.print(f"pictures  {run_dir}/{summary['last_samples']}", highlight=False, soft_wrap=True)
    console.print(f"          {run_dir}/curves.png", highlight=False, soft_wrap=True)
    console.print(f"results   {run_dir}", highlight=False, soft_wrap=True)
    told = f"fedgan report {shlex.quote(str(run_dir))}"
    console.print(f"next      {told}", highlight=False, soft_wrap=True)


def print_evaluation(console: Console, told: dict[str, Any]) -> None:
    """The figures of an evaluation, of a run or of somebody else's images."""
    encoders = ", ".join(one["name"] for one in told["final"]["encoders"])
    whose = "these images" if "images" in told else "the global generator"
    title = f"{whose}, seen by {encoders}, on {told['final']['samples']} images"
    console.print(figures_table(told["figures"], title))
    for note in told.get("notes", ()):
        console.print(f"[yellow]note[/] {escape(str(note))}", highlight=False)
    for name, found in told["details"].items():
        for note in found.get("notes", ()):
            console.print(f"[yellow]{name}[/] {escape(note)}", highlight=False)
    for name, line in told.get("failed", {}).items():
        console.print(f"[red]{name} could not be measured:[/] {escape(line)}", highlight=False)


def figures_table(figures: dict[str, float], title: str) -> Table:
    """Every figure with what belongs to it: its interval or spread, what real images get in its
    place, and the ratio to that."""
    table = Table(title=title, title_justify="left")
    for column in ("figure", "value", "real images", "ratio"):
        is_name = column == "figure"
        justify: Literal["left", "right"] = "left" if is_name else "right"
        table.add_column(column, justify=justify, no_wrap=not is_name, overflow="fold")
    for key, value in figures.items():
        base, _, ending = key.rpartition("_")
        if ending in ("floor", "real", "ratio", "low", "high", "std") and base in figures:
            continue
        real = figures.get(f"{key}_floor", figures.get(f"{key}_real"))
        ratio = figures.get(f"{key}_ratio")
        table.add_row(
            LABELS.get(key, key),
            _value(key, value, figures),
            "" if real is None else f"{real:.1%}" if _is_rate(key, figures) else f"{real:.4g}",
            "" if ratio is None else f"{ratio:.2f}",
        )
    return table


def _value(key: str, value: float, figures: dict[str, float]) -> str:
    """A figure with its interval or spread, if it has one; rates in per cent."""
    low, high, std = (figures.get(f"{key}_{ending}") for ending in ("low", "high", "std"))
    if low is not None and high is not None:
        return f"{value:.1%} ({low:.1%} to {high:.1%})"
    if _is_rate(key, figures):
        return f"{value:.1%}"
    return f"{value:.4g}" if std is None else f"{value:.3f} ± {std:.3f}"


def _is_rate(key: str, figures: dict[str, float]) -> bool:
    named = key.startswith("presence_") or "_weight_lost" in key or key == "detection_silenced"
    return named or f"{key}_low" in figures


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
