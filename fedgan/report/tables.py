"""The page's tables, as plain values for the template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedgan.comparison.cells import defense_name
from fedgan.report.charts import malicious
from fedgan.report.words import figure, number, times
from fedgan.runs import Run

Cell = dict[str, Any]
Table = dict[str, Any]
"""`caption`, `head` (labels) and `rows` of cells: `text`, `sub` (smaller, below it), `sort` (what
it is sorted by), `name` (the figure), and whether it is a `number`, and `bold`."""
ENDINGS = ("_floor", "_ratio", "_real", "_low", "_high", "_std")
DETECTION = {
    "detection_tpr": "malicious flagged",
    "detection_fpr": "benign flagged",
    "detection_benign_weight_lost": "benign weight lost",
}


def cell(text: str, value: float | None = None, sub: str = "", name: str = "") -> Cell:
    """A cell of a number; without one it is sorted last."""
    return {"text": text, "sub": sub, "sort": value, "name": name, "number": True, "bold": False}


def word(text: str, sub: str = "") -> Cell:
    """A cell of text."""
    return {"text": text, "sub": sub, "sort": text, "name": "", "number": False, "bold": False}


def figures_table(run: Run) -> Table:
    """Every final figure with what it is held against: its floor, or what real images get, and the
    ratio to it, and its interval."""
    found = run.figures
    rows = []
    for name, value in found.items():
        if any(name.endswith(end) and name.removesuffix(end) in found for end in ENDINGS):
            continue
        rows.append(
            [word(name), cell(figure(name, value), value, name=name), *_beside(name, found)]
        )
    head = ["figure", "value", "real images (floor)", "ratio to floor", "95 % interval"]
    return {"caption": "All figures of this run", "head": head, "rows": rows}


def _beside(name: str, found: dict[str, float]) -> list[Cell]:
    reference = f"{name}_floor" if f"{name}_floor" in found else f"{name}_real"
    real, ratio = found.get(reference), found.get(f"{name}_ratio")
    low, high, std = (found.get(name + end) for end in ("_low", "_high", "_std"))
    interval = ""
    if low is not None and high is not None:
        interval = f"{figure(name, low)} to {figure(name, high)}"
    elif std is not None:
        interval = f"s.d. {figure(name, std)}"
    return [
        cell("" if real is None else figure(name, real), real, name=reference),
        cell("" if ratio is None else times(ratio), ratio, name=f"{name}_ratio"),
        cell(interval, low),
    ]


def clients_table(run: Run) -> Table:
    """Who they are, what they hold, who was flagged how often, and the weight that was left."""
    bad, rows = malicious(run), []
    for client in run.summary["clients"]:
        told, attacks = client["rounds"], client["client"] in bad
        flagged, silenced = len(client["flagged_rounds"]), len(client["suppressed_rounds"])
        weight, fair = client.get("final_weight"), client.get("fair_weight")
        rows.append(
            [
                cell(str(client["client"]), client["client"]),
                word("▲ malicious" if attacks else "benign"),
                cell(f"{client['n_images']:,}", client["n_images"]),
                cell(f"{flagged} of {told}", flagged),
                cell(str(silenced), silenced),
                cell(number(weight), weight),
                cell(number(fair), fair),
            ]
        )
    head = [
        "client",
        "is",
        "images",
        "rounds flagged",
        "and weight lost",
        "last weight",
        "fair weight",
    ]
    return {"caption": "Clients", "head": head, "rows": rows}


def _without_one_data(table: Table) -> Table:
    """Without its first column, the data set, where that is the same in all rows."""
    if len({row[0]["text"] for row in table["rows"]}) > 1:
        return table
    return {**table, "head": table["head"][1:], "rows": [row[1:] for row in table["rows"]]}


def runs_table(runs: Sequence[Run], distance: str | None) -> Table:
    """A row a run."""
    shown = [distance, f"{distance}_floor", f"{distance}_ratio", "presence", *DETECTION]
    names = [name for name in shown if name and any(name in run.figures for run in runs)]
    called = {
        distance: "distance",
        f"{distance}_floor": "floor",
        f"{distance}_ratio": "ratio to floor",
        "presence": "trigger presence",
    } | DETECTION
    rows = []
    for run in runs:
        labels = run.labels
        row = [word(labels.data), word(labels.attack), word(defense_name(labels.defense))]
        row.append(cell(str(labels.seed), labels.seed))
        for name in names:
            value = run.figures.get(name)
            row.append(cell(figure(name, value), value, _interval(run, name), name))
        speed = run.summary.get("images_per_second")
        row.append(cell(number(speed), speed))
        rows.append(row)
    head = ["data", "attack", "defence", "seed", *(called[name] for name in names)]
    told = {"caption": "All runs", "head": [*head, "images/s"], "rows": rows}
    return _without_one_data(told)


def _interval(run: Run, name: str) -> str:
    ends = [run.figures.get(f"{name}_{end}") for end in ("low", "high")]
    if None in ends:
        return ""
    return " to ".join(figure(name, end) for end in ends)
