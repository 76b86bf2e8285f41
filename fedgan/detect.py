"""FedDetect on a table of losses, from any federation whatever: read, replay, tell.

A table is a CSV file with a row a client a round, in any order, and the columns

- round: whole numbers; they count from 0 where there is a round 0, else from 1.
- client: numbers or names. A client may be missing in some rounds.
- g_loss, d_loss: those that the rule looks at. A table has one of each, which stands for the mean
  of the round and for the last mini-batch alike. Empty or not finite: the client is left out of the
  round, as a federation of fedgan leaves it out.
- n_images, if it is there: FedAvg's weights; else all clients weigh the same.

All other columns are ignored.
"""

from __future__ import annotations

import csv
import inspect
import io
import itertools
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedgan import config
from fedgan.cache import write_atomically
from fedgan.components import build, find, python_path
from fedgan.defenses.base import Defense
from fedgan.defenses.feddetect import FedDetect
from fedgan.errors import UserError

log = logging.getLogger(__name__)
COLUMNS = ("round", "client", "score", "flagged", "acted", "weight")
FEWEST = 3
"""Clients of a round among which one can be odd."""


@dataclass(frozen=True)
class Entry:
    """One row of the table: what a client claims of a round."""

    round: int
    client: str
    losses: tuple[float, ...]
    n_images: float
    sound: bool
    """Whether all losses are finite."""


@dataclass(frozen=True)
class Finding:
    """What the rule says of one row."""

    round: int
    client: str
    score: float
    """The forest's, in (0, 1]; NaN where it has not looked."""
    flagged: bool
    acted: bool
    """Whether the round changed weights, be it this client's or another's."""
    weight: float
    """After the round, in [0, 1]."""
    fair: float
    """The weight without a defence."""
    note: str
    """What follows from a flag, or why the client was left out."""


def detect(table: Path, overrides: Sequence[str] = (), out: Path | None = None) -> str:
    """Judges the losses in a CSV file, and tells in plain words what was found.

    Args:
        table: see the head of this module.
        overrides: such as `--defense.loss=d_loss`; they change the published configuration.
        out: a CSV file to write, with the columns `COLUMNS`, a row for each row of the table, by
            round and client. It replaces a file that is there.

    Raises `UserError` for whatever is wrong with the three.
    """
    rule = make_rule(overrides)
    if out is not None:
        _check_out(out, table)
    findings = replay(rule, read_table(table, rule))
    if not any(math.isfinite(finding.score) for finding in findings):
        raise UserError(
            f"{table}: no round has {FEWEST} clients with a {' and a '.join(_columns(rule))}; "
            f"{rule.name} needs at least {FEWEST}"
        )
    lines = [_describe(rule), "", *round_lines(findings), "", *client_lines(findings)]
    if out is not None:
        write_table(findings, out)
        lines.append(f"table     {out}")
    return "\n".join(lines)


def make_rule(overrides: Sequence[str] = ()) -> FedDetect:
    """FedDetect as published, less what the overrides change: `--defense.KEY=VALUE`, where KEY may
    also be `init_args.KEY` as in a config.

    Raises `UserError` for anything else, and for values that the rule does not take.

    >>> make_rule(["--defense.warm_up=3"]).warm_up
    3
    """
    for override in overrides:
        if not (override.startswith("--defense.") and "=" in override):
            raise UserError(f"unexpected argument '{override}'; detect takes --defense.KEY=VALUE")
    keys = r"^--defense\.(?!(?:name|class_path|init_args)\b)"
    overrides = [re.sub(keys, "--defense.init_args.", override) for override in overrides]
    published = FedDetect.published()
    init_args = {key: getattr(published, key) for key in inspect.signature(FedDetect).parameters}
    values = {"defense": {"name": FedDetect.name, "init_args": init_args}}
    choice = config.from_dict(values, overrides).defense
    with python_path(Path.cwd()):
        cls = find("defense", choice, "fedgan.defenses", Defense)
    if not issubclass(cls, FedDetect):
        raise UserError(
            f"defense: {cls.name} does not judge by losses alone; detect takes {FedDetect.name}"
        )
    return build("defense", choice, cls)


def read_table(path: Path, rule: FedDetect) -> list[Entry]:
    """The rows of a table, by round and client, and of their losses those that the rule looks at.

    Warns of every row whose losses are not finite. Raises `UserError`, with the line where there is
    one, for a file that cannot be read, an empty table, a missing column, a value that is not a
    number, and a client that is twice in a round.
    """
    entries: dict[tuple[int, str], Entry] = {}
    lines: dict[tuple[int, str], int] = {}
    for line, row in _rows(path, _columns(rule)):
        where = f"{path}, line {line}"
        entry = _entry(row, _columns(rule), where)
        key = (entry.round, entry.client)
        if key in entries:
            raise UserError(
                f"{where}: client {entry.client!r} is in round {entry.round} twice; "
                f"first on line {lines[key]}"
            )
        entries[key], lines[key] = entry, line
    if not entries:
        raise UserError(f"{path}: an empty table")
    ordered = sorted(entries, key=lambda key: (key[0], _natural(key[1])))
    for key in ordered:
        if not entries[key].sound:
            log.warning(
                "%s, line %d: client %r has no finite %s in round %d and is left out of it",
                *(path, lines[key], key[1], " and ".join(_columns(rule)), key[0]),
            )
    return [entries[key] for key in ordered]


def replay(rule: FedDetect, entries: Sequence[Entry]) -> list[Finding]:
    """What the rule, as it goes through the rounds in order, says of each entry.

    Weights are over the sound clients of a round; the others have none.
    """
    zero = 0 if any(entry.round == 0 for entry in entries) else 1
    findings = []
    for number, group in itertools.groupby(entries, lambda entry: entry.round):
        rows = list(group)
        judged = _judge(rule, [row for row in rows if row.sound], number - zero + 1)
        acted = any(found.acted for found in judged)
        found = iter(judged)
        findings += [next(found) if row.sound else _left_out(row, acted) for row in rows]
    return findings


def _judge(rule: FedDetect, rows: Sequence[Entry], round: int) -> list[Finding]:
    """One round, counted from 1, of sound clients."""
    if not rows:
        return []
    images = torch.tensor([row.n_images for row in rows], dtype=torch.float64)
    fair = images / images.sum()
    losses = np.array([row.losses for row in rows])
    verdict = rule.judge([row.client for row in rows], losses, fair, round)
    if verdict.acted:
        note = "loses weight"
    else:
        note = "warm-up" if round - 1 <= rule.warm_up else "too many flagged"
    columns = (verdict.scores, verdict.flagged, verdict.weights, fair)
    return [
        Finding(row.round, row.client, score, odd, verdict.acted, weight, own, note if odd else "")
        for row, score, odd, weight, own in zip(rows, *(c.tolist() for c in columns), strict=True)
    ]


def _left_out(row: Entry, acted: bool) -> Finding:
    return Finding(row.round, row.client, math.nan, False, acted, 0.0, 0.0, "left out")


def write_table(findings: Sequence[Finding], out: Path) -> None:
    """The findings as a CSV file: true or false, an empty score where there is none, and floats
    that read back as they were. Raises `UserError` where it cannot be written."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for found in findings:
        score = repr(found.score) if math.isfinite(found.score) else ""
        booleans = [str(value).lower() for value in (found.flagged, found.acted)]
        writer.writerow([found.round, found.client, score, *booleans, repr(found.weight)])
    # resolved, so that a link goes on pointing at what it names
    write_atomically(
        out.resolve(), lambda beside: _write_bytes(beside, text.getvalue().encode("utf-8"))
    )


def _write_bytes(path: Path, text: bytes) -> None:
    path.write_bytes(text)


def round_lines(findings: Sequence[Finding]) -> list[str]:
    """A line a round, and more where several clients are flagged in it."""
    flagged = [found.client for found in findings if found.flagged]
    width = max(map(len, ("flagged", "nobody", *flagged)))
    lines = [f"round  {'flagged':{width}}  score  weight"]
    for number, group in itertools.groupby(findings, lambda found: found.round):
        shown = str(number)
        odd = [found for found in group if found.flagged]
        if not odd:
            lines.append(f"{shown:>5}  nobody")
        for found in odd:
            figures = f"{found.score:5.3f}  {found.weight:6.3f}"
            lines.append(f"{shown:>5}  {found.client:{width}}  {figures}  {found.note}")
            shown = ""
    return lines


def client_lines(findings: Sequence[Finding]) -> list[str]:
    """Who is suspected and how often, the most often flagged first, and what it costs."""
    clients: dict[str, list[Finding]] = {}
    for found in sorted(findings, key=lambda found: _natural(found.client)):
        judged = clients.setdefault(found.client, [])
        if found.note != "left out":
            judged.append(found)
    flags = {name: sum(found.flagged for found in own) for name, own in clients.items()}
    suspects = sorted(filter(flags.get, clients), key=lambda name: -flags[name])
    if not suspects:
        return [f"nobody is suspected: none of {len(clients)} clients was flagged in any round"]
    width = max(map(len, ("suspected", *suspects)))
    titles = ("rounds flagged", "lost weight in", "final weight", "fair weight")
    lines = ["  ".join((f"{'suspected':{width}}", *titles))]
    for name in suspects:
        own = clients[name]
        cells = (
            f"{flags[name]} of {len(own)}",
            str(sum(found.flagged and found.acted for found in own)),
            f"{own[-1].weight:.3f}",
            f"{own[-1].fair:.3f}",
        )
        figures = (f"{cell:>{len(title)}}" for cell, title in zip(cells, titles, strict=True))
        lines.append("  ".join((f"{name:{width}}", *figures)))
    others = [name for name in clients if not flags[name]]
    if others:
        few = len(others) <= 8
        lines.append(f"never flagged: {', '.join(others) if few else f'{len(others)} clients'}")
    return lines


def _describe(rule: FedDetect) -> str:
    return (
        f"{rule.name} on {' and '.join(_columns(rule))}; decay {rule.decay}, {rule.decay_form}; "
        f"warm-up {rule.warm_up}; forest seed {rule.forest_seed}"
    )


def _columns(rule: FedDetect) -> tuple[str, ...]:
    """The columns that the rule looks at: a table has one of each loss."""
    return tuple(name.removesuffix("_last") for name in rule.reads)


def _natural(client: str) -> tuple[bool, int, str]:
    """Sorts numbers as numbers, and before names."""
    is_number = re.fullmatch(r"-?[0-9]{1,18}", client) is not None
    return not is_number, int(client) if is_number else 0, client


def _rows(path: Path, wanted: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows that are not blank, by column and without spaces around values, and their lines."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            filled = (cells for cells in reader if any(map(str.strip, cells)))
            header = [name.strip() for name in next(filled, ())]
            _check_header(header, wanted, path)
            for cells in filled:
                if len(cells) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(cells)} values, "
                        f"where the header has {len(header)} columns"
                    )
                yield reader.line_num, dict(zip(header, map(str.strip, cells), strict=True))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; name the table, as {path / 'clients.csv'}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _check_header(header: Sequence[str], wanted: Sequence[str], path: Path) -> None:
    if not header:
        raise UserError(f"{path}: an empty table")
    needed = ("round", "client", *wanted)
    missing = [name for name in needed if name not in header]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(filter(None, header))}"
        )
    for name in (*needed, "n_images"):
        if header.count(name) > 1:
            raise UserError(f"{path}: {header.count(name)} columns are called {name}")


def _entry(row: dict[str, str], columns: Sequence[str], where: str) -> Entry:
    if not row["client"]:
        raise UserError(f"{where}: client is empty")
    round = _number(row, "round", where)
    if not (round.is_integer() and round >= 0):
        raise UserError(f"{where}: round {row['round']!r} is not a whole number from 0 up")
    losses = tuple(_number(row, name, where) for name in columns)
    sound = all(map(math.isfinite, losses))
    n_images = _number(row, "n_images", where) if "n_images" in row else 1.0
    if sound and not 0 < n_images < math.inf:  # who has dropped out may have none
        raise UserError(f"{where}: n_images {row['n_images']!r} is not a number above 0")
    return Entry(int(round), row["client"], losses, n_images, sound)


def _number(row: dict[str, str], column: str, where: str) -> float:
    """The value in a column; NaN where it is empty."""
    text = row[column]
    try:
        return float(text or "nan")
    except ValueError:
        raise UserError(f"{where}: {column} {text!r} is not a number") from None


def _check_out(out: Path, table: Path) -> None:
    """Raises `UserError` for what is known to be unwritable before anything is read."""
    if out.exists() and table.exists() and out.samefile(table):
        raise UserError(f"--out: {out} is the table that is read; name another file")
    if not out.parent.is_dir():
        raise UserError(f"--out: {out.parent} is no folder")
    if out.exists() and not out.is_file():
        raise UserError(f"--out: {out} is no file")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise UserError(f"--out: {out} cannot be written")
