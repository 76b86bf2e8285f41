"""A comparison on the page: its leaderboard, its ranking, and attack by defence in colours.

What stands in the cells is what `fedgan compare` prints: `fedgan.comparison.cells` writes both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fedgan.comparison import Comparison, Row
from fedgan.comparison.cells import (
    RANKING,
    Column,
    columns,
    defense_name,
    halves,
    held,
    number,
    percent,
    ranking_columns,
    shown,
    title_of,
)
from fedgan.comparison.names import natural
from fedgan.comparison.spread import Difference, Spread
from fedgan.report.tables import Table, word
from fedgan.report.words import ABSENT
from fedgan.runs import NOBODY, UNDEFENDED

FULL_HEAT = math.log(2)
"""Logarithm of the ratio to clean that has the full colour of the heat map."""


def leaderboard(comparison: Comparison, data: str) -> list[Table]:
    """The leaderboard of a data set, as on the screen: distances, then trigger and detection."""
    rows = [row for row in comparison.rows if row.data == data]
    return [
        _table(title or title_of(comparison, data), own, rows)
        for title, own in halves(columns(comparison))
    ]


def ranking(comparison: Comparison, data: str) -> Table | None:
    """The defences on a data set by their worst case; None where nobody attacks."""
    places = [one for one in comparison.ranking if one.data == data]
    return _table(RANKING, ranking_columns(comparison), places) if places else None


def _table(caption: str, own: Sequence[Column[Any]], rows: Sequence[Any]) -> Table:
    kept = [column for column in own if column.head != "data"]
    found = []
    for row in rows:
        cells = []
        for column in kept:
            text = column.text(row)
            value = text if column.is_name else column.value(row)
            cells.append(
                {
                    **word(text),
                    "sort": value,
                    "number": not column.is_name,
                    "bold": column.is_bold(row),
                }
            )
        found.append(cells)
    return {"caption": caption, "head": [column.head for column in kept], "rows": found}


def heat_maps(comparison: Comparison, data: str) -> list[dict[str, Any]]:
    """Attack by defence on a data set: the distance as a ratio to clean, and trigger presence, with
    what is shown of either; none of what no row has."""
    rows = {(row.attack, row.defense): row for row in comparison.rows if row.data == data}
    attacks = list(dict.fromkeys(attack for attack, _ in rows))
    names = {defense for _, defense in rows}
    defenses = sorted(names, key=lambda name: (name != UNDEFENDED, natural(name)))
    found: list[dict[str, Any]] = []
    for title, tell in (("Distance, ratio to clean", _ratio), ("Trigger presence", _leak)):
        lines: list[dict[str, Any]] = [
            {
                "label": "no attack" if attack == NOBODY else attack,
                "cells": [_heat(rows.get((attack, defense)), tell) for defense in defenses],
            }
            for attack in attacks
        ]
        if any(cell["heat"] is not None for line in lines for cell in line["cells"]):
            heads = [defense_name(name) for name in defenses]
            found.append({"data": data, "title": title, "columns": heads, "rows": lines})
    return found


def _ratio(row: Row) -> tuple[Spread | None, str, Difference | None, float]:
    heat = _log_heat(row.ratio.mean) if row.ratio else 0.0
    return row.ratio, number(row.ratio, digits=2), held(row), heat


def _leak(row: Row) -> tuple[Spread | None, str, Difference | None, float]:
    heat = row.presence.mean if row.presence else 0.0
    return row.presence, percent(row.presence), row.presence_difference, heat


def _heat(row: Row | None, tell: Any) -> dict[str, Any]:
    if row is None:
        return {"text": ABSENT, "sub": "not run", "heat": None}
    spread, text, difference, heat = tell(row)
    if spread is None:
        return {"text": ABSENT, "sub": "not measured", "heat": None}
    return {"text": text, "sub": _said(difference), "heat": round(heat, 3)}


def _said(found: Difference | None) -> str:
    return "nothing shown" if shown(found) == "nothing" else shown(found)


def _log_heat(ratio: float) -> float:
    """-1 at half of clean, 0 at clean, 1 at twice clean and beyond.

    >>> _log_heat(1.0), _log_heat(2.0), _log_heat(9.0)
    (0.0, 1.0, 1.0)
    """
    return max(-1.0, min(1.0, math.log(ratio) / FULL_HEAT)) if ratio > 0 else -1.0
