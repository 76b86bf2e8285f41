"""What defences find and save, of every attack: the figures of grids, kept and printed.

    python benchmarks/defense.py KEPT.csv [GRID_DIR ...] [--columns auroc tpr fpr rounds ...]

Of each finished cell of the grids it keeps one line in KEPT.csv, in the place of what was there of
that cell, so that figures of several machines and days come together, and prints two tables of all
that is kept, in Markdown. The first has a row for each attack and a column for each defence, with
the AUROC of client-rounds and the presence of the trigger at the end; the second a row for each
attack and defence, with all columns. Means over seeds; in brackets the worst seed, where they
differ. What misses a goal is bold, and lines below name it.

Columns: AUROC, true and false positives of client-rounds, rounds until attackers are first silenced
(all, if never), weight that benign clients lost, presence, Frechet distance (its ratio to the
floor), and recovery, the share of the harm that is undone (`fedgan.metrics.recovery`): of the
distance, and of the trigger's leakage, for which a clean generator's presence is taken for 0, since
clean arms look for the base config's trigger only. There is none where the attack did no harm
beyond the spread of the seeds, or left its trigger in no more than 1 % of the images.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgan.comparison import distance_of
from fedgan.errors import UserError
from fedgan.metrics.recovery import LEAST_LEAKAGE, leakage_removed, recovery
from fedgan.runs import NOBODY, UNDEFENDED, Run, read_grid_dir

ENCODER = "distance_in"
KEY = ("grid", "data", "attack", "defense", "seed")
Line = Mapping[str, str]
Arm = tuple[str, str, str, str]


@dataclass(frozen=True)
class Column:
    """A figure of a cell.

    Attributes:
        head: of its column.
        figure: its name among a run's figures.
        percent: whether it is a share.
        goal: what it has to be, of a mean over seeds; None where there is no goal.
        worst: of several seeds.
    """

    head: str
    figure: str
    percent: bool = True
    goal: Callable[[float], bool] | None = None
    worst: Callable[[Iterable[float]], float] = max

    def told(self, values: Sequence[float]) -> str:
        """A mean and the worst, bold where the goal is missed."""
        if not values:
            return ""
        mean, worst = statistics.fmean(values), self.worst(values)
        shown, also = self._one(mean), self._one(worst)
        if self.goal is not None and not self.goal(mean):
            shown = f"**{shown}**"
        return shown if shown.strip("*") == also else f"{shown} ({also})"

    def missed(self, values: Sequence[float]) -> bool:
        return bool(values) and self.goal is not None and not self.goal(statistics.fmean(values))

    def _one(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.percent else f"{value:.{2 if value < 2 else 1}f}"


COLUMNS = {
    "auroc": Column("AUROC", "detection_auroc", False, lambda v: v >= 0.95, min),
    "tpr": Column("flagged: attackers", "detection_tpr", worst=min),
    "fpr": Column("honest", "detection_fpr", goal=lambda v: v <= 0.01),
    "rounds": Column("silenced after", "detection_rounds_until_first_silenced", False),
    "lost": Column("benign weight lost", "detection_benign_weight_lost", goal=lambda v: v <= 0.05),
    "presence": Column("presence", "presence", goal=lambda v: v <= 0.01),
    "distance": Column("distance / floor", "distance", False),
}
HEADS = [*KEY, *COLUMNS, ENCODER]
"""Of a line that is kept."""
HARM = {"distance": "distance", "leakage": "presence"}
"""What an attack does, and the column that tells it."""
RECOVERY = 0.9
"""Goal: the share of it that is undone."""


def line_of(grid: str, run: Run, distance: str) -> dict[str, Any]:
    """What is kept of a run."""
    figures = {**run.figures, "distance": run.figures.get(f"{distance}_ratio")}
    kept = {name: figures.get(one.figure) for name, one in COLUMNS.items()}
    kept = {name: "" if value is None else f"{value:.6g}" for name, value in kept.items()}
    return {**dict(zip(KEY, (grid, *run.labels), strict=True)), **kept, ENCODER: distance}


def keep(path: Path, grids: Sequence[Path]) -> list[Line]:
    """What the file and the grids have, and writes it."""
    lines: list[Line] = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        lacks = [key for key in HEADS if any(line.get(key) is None for line in lines)]
        if lacks:
            raise UserError(f"{path}: is not what this keeps: no {', '.join(lacks)}")
    found = {tuple(line[key] for key in KEY): line for line in lines}
    for grid in grids:
        runs = read_grid_dir(grid).runs
        distance = distance_of(runs) if runs else ""
        for run in runs:
            line = line_of(grid.name, run, distance)
            found[tuple(str(line[key]) for key in KEY)] = line
    lines = list(found.values())
    for grid in {line["grid"] for line in lines}:
        several = sorted({line[ENCODER] for line in lines if line["grid"] == grid})
        if len(several) > 1:
            raise UserError(f"{path}: distances of {grid} are of several kinds: {several}")
    if grids:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, HEADS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(sorted(lines, key=lambda line: (line["grid"], int(line["seed"]))))
    return lines


class Figures:
    """All that is kept, by arm, each of its columns by seed."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.arms: dict[Arm, dict[int, Line]] = {}
        for line in lines:
            arm = (line["grid"], line["data"], line["attack"], line["defense"])
            self.arms.setdefault(arm, {})[int(line["seed"])] = line

    def of(self, arm: Arm, column: str) -> dict[int, float]:
        """A figure by seed."""
        own = self.arms.get(arm, {})
        return {seed: float(line[column]) for seed, line in own.items() if line[column]}

    def recovered(self, arm: Arm, column: str) -> float | None:
        """How much of the harm is undone, of the distance or of the presence; None where it is not
        defined, or an arm has not been trained."""
        grid, data, attack, defense = arm
        attacked, defended = self.of((*arm[:3], UNDEFENDED), column), self.of(arm, column)
        if attack == NOBODY or defense == UNDEFENDED or not (attacked and defended):
            return None
        if column == "presence":
            if statistics.fmean(attacked.values()) <= LEAST_LEAKAGE:
                return None
            return leakage_removed(dict.fromkeys(attacked, 0.0), attacked, defended).value
        clean = self.of((grid, data, NOBODY, UNDEFENDED), column)
        return recovery(clean, attacked, defended).value if clean else None


def overview(figures: Figures, grid: str) -> Iterable[str]:
    """A row an attack, a column a defence."""
    arms = [arm for arm in figures.arms if arm[0] == grid]
    defenses = list(dict.fromkeys(arm[3] for arm in arms))
    yield _row(["data", "attack", *(f"{one}: AUROC" for one in defenses), *defenses])
    yield _row(["---"] * (2 + 2 * len(defenses)))
    for data, attack in dict.fromkeys(arm[1:3] for arm in arms):
        cells = [
            COLUMNS[name].told(list(figures.of((grid, data, attack, defense), name).values()))
            for name in ("auroc", "presence")
            for defense in defenses
        ]
        yield _row([data, attack, *cells])


def details(figures: Figures, grid: str, columns: Sequence[str]) -> Iterable[str]:
    """A row an attack and a defence; and how many of them miss a goal."""
    heads = [COLUMNS[name].head for name in columns]
    yield _row(["data", "attack", "defence", "seeds", *heads, *(f"{one} undone" for one in HARM)])
    yield _row(["---"] * (len(columns) + len(HARM) + 4))
    missed: dict[str, list[str]] = {}
    for arm, own in figures.arms.items():
        if arm[0] != grid:
            continue
        values = {name: list(figures.of(arm, name).values()) for name in columns}
        told = [COLUMNS[name].told(values[name]) for name in columns]
        late = [COLUMNS[name].head for name in columns if COLUMNS[name].missed(values[name])]
        for harm, column in HARM.items():
            share = figures.recovered(arm, column)
            told.append("" if share is None else f"{share:.2f}")
            if share is not None and share < RECOVERY:
                told[-1] = f"**{told[-1]}**"
                late.append(harm)
        yield _row([*arm[1:], str(len(own)), *told])
        for what in late:
            missed.setdefault(f"{arm[3]}: {what}", []).append(f"{arm[2]} ({arm[1]})")
    for what, attacks in sorted(missed.items()):
        yield f"missed by {what} in {len(attacks)}: {', '.join(attacks)}"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("kept", type=Path, metavar="KEPT.csv")
    parser.add_argument("grids", type=Path, nargs="*", metavar="GRID_DIR")
    parser.add_argument("--columns", nargs="+", choices=[*COLUMNS], default=[*COLUMNS])
    options = parser.parse_args()
    try:
        figures = Figures(keep(options.kept, options.grids))
    except UserError as error:
        parser.error(str(error))
    for grid in dict.fromkeys(arm[0] for arm in figures.arms):
        print(f"\n{grid}: presence at the end, and AUROC\n")
        print("\n".join(overview(figures, grid)))
        print(f"\n{grid}\n")
        print("\n".join(details(figures, grid, options.columns)))


if __name__ == "__main__":
    main()
