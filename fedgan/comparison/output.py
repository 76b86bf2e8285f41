"""A comparison as CSV, Markdown, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from fedgan.cache import write_atomically
from fedgan.comparison.cells import RANKING, Column, columns, halves, missing_lines, ranking_columns
from fedgan.comparison.spread import Difference, Spread
from fedgan.comparison.table import Comparison, Row
from fedgan.errors import UserError
from fedgan.metrics.recovery import Recovery

LEADERBOARD = "leaderboard"
MOST = 6
"""Missing cells that a caption names."""
TEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "%_&#${}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
    }
)
MINUS = re.compile(r"(?<![\w-])-(?=\d)")
MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in "\\|*_<>`"})


def write_leaderboard(folder: Path, comparison: Comparison, stem: str = LEADERBOARD) -> list[Path]:
    """Writes leaderboard.csv, .md and .tex into a folder, which is made; returns their paths.

    Raises `UserError` where they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    paths = []
    for ending in ("csv", "md", "tex"):
        path = folder / f"{stem}.{ending}"
        write_atomically(path, partial(_write, FORMATS[ending](comparison)))
        paths.append(path)
    return paths


def to_csv(comparison: Comparison) -> str:
    """A row a (data, attack, defence), numbers in full, empty where there is none.

    `value` is the figure that the column `figure` names. `NAME_mean`, `_std` and `_n` are over
    seeds; `place` and `is_worst_case` say where the defence stands in its data set's ranking, and
    whether this attack put it there.
    """
    rows = flat_rows(comparison)
    heads = dict.fromkeys(head for row in rows for head in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json(comparison: Comparison) -> str:
    """All of it: the fields of `Comparison`, and what its properties and those of rows say."""
    told = {**asdict(comparison), "tested": comparison.tested, "method": comparison.method}
    for shown, row in zip(told["rows"], comparison.rows, strict=True):
        shown |= {"arm": row.arm, "utility": list(row.utility), "is_better": row.is_better}
    return json.dumps(told, indent=2, allow_nan=False) + "\n"


def to_markdown(comparison: Comparison) -> str:
    """Both tables, the method, what is missing and the notes, for GitHub and the like."""
    parts = ["# Leaderboard", _markdown_table(columns(comparison), comparison.rows)]
    if comparison.ranking:
        parts += [f"## {RANKING}"]
        parts += [_markdown_table(ranking_columns(comparison), comparison.ranking)]
    parts += [comparison.method.translate(MARKDOWN)]
    for head, lines in (
        ("Missing", missing_lines(comparison.missing)),
        ("Notes", comparison.notes),
    ):
        if lines:
            told = "\n".join(f"- {line.translate(MARKDOWN)}" for line in lines)
            parts += [f"## {head}", told]
    return "\n\n".join(parts) + "\n"


def to_latex(comparison: Comparison) -> str:
    r"""The tables, for \input into a paper that loads booktabs and graphicx; the leaderboard in two
    halves, which a page is wide enough for."""
    method = comparison.method
    lacks = missing_lines(comparison.missing)
    if lacks:
        more = f"; and {len(lacks) - MOST} more" if len(lacks) > MOST else ""
        method += f" Missing: {'; '.join(lacks[:MOST])}{more}."
    parts = [r"% Needs \usepackage{booktabs} and \usepackage{graphicx}."]
    for title, own in halves(columns(comparison)):
        caption, label = (f"{title}.", "found") if title else (method, LEADERBOARD)
        parts.append(_latex_table(own, comparison.rows, caption, label))
    if comparison.ranking:
        places = ranking_columns(comparison)
        parts.append(_latex_table(places, comparison.ranking, f"{RANKING}.", "ranking"))
    return "\n".join(parts)


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "csv": to_csv,
    "md": to_markdown,
    "tex": to_latex,
    "json": to_json,
}


def flat_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """The rows of `to_csv` as plain values; None where there is none."""
    return [_flat_row(comparison, row) for row in comparison.rows]


def _flat_row(comparison: Comparison, row: Row) -> dict[str, Any]:
    place = next(
        (p for p in comparison.ranking if (p.data, p.defense) == (row.data, row.defense)), None
    )
    low, high = row.presence_interval or (None, None)
    flat: dict[str, Any] = {
        "data": row.data,
        "attack": row.attack,
        "defense": row.defense,
        "arm": row.arm,
        "n_seeds": len(row.seeds),
        "seeds": " ".join(map(str, row.seeds)),
        "figure": comparison.figure,
        **_spread("value", row.value),
        **_spread("ratio_to_clean", row.ratio),
        **_difference("difference", row.difference),
        **_difference("harm", row.harm),
        **_recovery("recovery", row.recovery),
        **_spread("presence", row.presence),
        "presence_low": low,
        "presence_high": high,
        **_difference("presence_difference", row.presence_difference),
        **_recovery("leakage_removed", row.leakage),
    }
    for name in dict.fromkeys(name for one in comparison.rows for name in one.detection):
        flat |= _spread(f"detection_{name}", row.detection.get(name))
    for name in dict.fromkeys(name for one in comparison.rows for name in one.utility):
        flat |= _spread(name, row.utility.get(name))
    flat["place"] = place and place.place
    flat["is_worst_case"] = bool(place and place.attack == row.attack)
    return flat


def _spread(name: str, spread: Spread | None) -> dict[str, Any]:
    keys = ("mean", "std", "n")
    return {f"{name}_{key}": getattr(spread, key, None) for key in keys}


def _difference(name: str, found: Difference | None) -> dict[str, Any]:
    keys = ("low", "high", "n", "p", "p_holm", "shown")
    return {
        name: getattr(found, "mean", None),
        **{f"{name}_{key}": getattr(found, key, None) for key in keys},
    }


def _recovery(name: str, found: Recovery | None) -> dict[str, Any]:
    return {
        name: getattr(found, "value", None),
        f"{name}_low": getattr(found, "low", None),
        f"{name}_high": getattr(found, "high", None),
    }


def _markdown_table(own: Sequence[Column[Any]], rows: Sequence[Any]) -> str:
    def cell(column: Column[Any], row: Any) -> str:
        text = column.text(row).translate(MARKDOWN)
        return f"**{text}**" if column.is_bold(row) else text

    lines = [
        [column.head.translate(MARKDOWN) for column in own],
        ["---" if column.is_name else "---:" for column in own],
        *([cell(column, row) for column in own] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _latex_table(own: Sequence[Column[Any]], rows: Sequence[Any], caption: str, label: str) -> str:
    def cell(column: Column[Any], row: Any) -> str:
        text = MINUS.sub("$-$", column.text(row).translate(TEX))
        return rf"\textbf{{{text}}}" if column.is_bold(row) else text

    lines = [
        r"\begin{table*}",
        r"\centering",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{''.join('l' if column.is_name else 'r' for column in own)}}}",
        r"\toprule",
        " & ".join(column.head.translate(TEX) for column in own) + r" \\",
    ]
    data = None
    for row in rows:
        if row.data != data:
            lines.append(r"\midrule")
            data = row.data
        lines.append(" & ".join(cell(column, row) for column in own) + r" \\")
    lines += [
        r"\bottomrule",
        r"\end{tabular}}",
        rf"\caption{{{caption.translate(TEX)}}}",
        rf"\label{{tab:{label}}}",
        r"\end{table*}",
        "",
    ]
    return "\n".join(lines)


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
