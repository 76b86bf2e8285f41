"""A comparison on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedgan.comparison.cells import (
    RANKING,
    Column,
    columns,
    halves,
    missing_lines,
    ranking_columns,
    title_of,
)
from fedgan.comparison.table import Comparison, Row

NARROW = 10
"""Characters of a name where even the numbers take several lines."""
MOST = 12
"""Lines of missing cells that are shown; the files have all."""


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Tables of each data set, what is missing, and how to read it."""
    for data in comparison.data:
        rows = [row for row in comparison.rows if row.data == data]
        for half, part in halves(columns(comparison)):
            told = f"{data}: {half}" if half else title_of(comparison, data)
            console.print(_table(told, part, rows, console.width))
        _print_ranking(console, comparison, data)
    lines = missing_lines(comparison.missing)
    for line in lines[:MOST]:
        _note(console, "missing", line)
    if len(lines) > MOST:
        _note(console, "missing", f"and {len(lines) - MOST} more cells")
    for note in comparison.notes:
        _note(console, "note", note)
    console.print(escape(comparison.method), highlight=False)


def print_ranking(console: Console, comparison: Comparison) -> None:
    """Of each data set the defences by their worst case alone."""
    for data in comparison.data:
        _print_ranking(console, comparison, data)


def _print_ranking(console: Console, comparison: Comparison, data: str) -> None:
    places = [one for one in comparison.ranking if one.data == data]
    if places:
        own = ranking_columns(comparison)
        if not _width_of_names(own, _widest(own, places), console.width):
            own = [column for column in own if not column.is_extra]
        console.print(_table(f"{data}: {RANKING}", own, places, console.width))


def _note(console: Console, kind: str, line: str) -> None:
    console.print(f"[yellow]{kind}[/] {escape(line)}", highlight=False)


def _table(title: str, own: Sequence[Column[Any]], rows: Sequence[Any], width: int) -> Table:
    table = Table(
        title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    shown = [column for column in own if column.head != "data"]
    widest = _widest(shown, rows)
    most = _width_of_names(shown, widest, width)
    for column, its in zip(shown, widest, strict=True):
        if column.is_name:
            wide = min(max(its, len(column.head)), most or NARROW)
            table.add_column(escape(column.head), width=wide, overflow="fold")
        else:
            head = column.head.replace(" ", "\n", 1) if len(column.head) > its else column.head
            table.add_column(escape(head), justify="right", no_wrap=most > 0, overflow="fold")
    last = None
    for row in rows:
        if isinstance(row, Row) and row.attack != last:
            table.add_section()
            last = row.attack
        table.add_row(*(_cell(column, row) for column in shown))
    return table


def _widest(own: Sequence[Column[Any]], rows: Sequence[Any]) -> list[int]:
    return [max(len(column.text(row)) for row in rows) for column in own]


def _width_of_names(own: Sequence[Column[Any]], widest: Sequence[int], width: int) -> int:
    """How wide a column of names may be so that all numbers stay on one line; 0 where they cannot.

    Rich would rather crop a line, or leave no name at all.
    """
    room = width - 2 * len(own) - 1
    for most in (100, 28, 20, 16, 12):
        needed = 0
        for column, its in zip(own, widest, strict=True):
            if column.is_name:
                needed += min(max(its, len(column.head)), most)
            else:
                needed += max(its, *map(len, column.head.split(" ", 1)))
        if needed <= room:
            return most
    return 0


def _cell(column: Column[Any], row: Any) -> str:
    text = escape(column.text(row))
    return f"[bold]{text}[/]" if column.is_bold(row) else text
