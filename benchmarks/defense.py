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
floor), and the share of the distance that is won back (`fedgan.metrics.recovery`; none where the
attack did no harm beyond the spread of the seeds).
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
from fedgan.metrics.recovery import Recovery, recovery
from fedgan.runs import NOBODY, UNDEFENDED, Run, read_grid_dir

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
RECOVERY = 0.9


def line_of(grid: str, run: Run, distance: str) -> dict[str, Any]:
    """What is kept of a run."""
    figures = {**run.figures, "distance": run.figures.get(f"{distance}_ratio")}
    kept = {name: figures.get(one.figure) for name, one in COLUMNS.items()}
    kept = {name: "" if value is None else f"{value:.6g}" for name, value in kept.items()}
    return {**dict(zip(KEY, (grid, *run.labels), strict=True)), **kept}


def keep(path: Path, grids: Sequence[Path]) -> list[Line]:
    """What the file and the grids have, and writes it."""
    lines: list[Line] = []
    if path.is_file():
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
    found = {tuple(line[key] for key in KEY): line for line in lines}
    for grid in grids:
        runs = read_grid_dir(grid).runs
        distance = distance_of(runs) if runs else ""
        for run in runs:
            line = line_of(grid.name, run, distance)
            found[tuple(str(line[key]) for key in KEY)] = line
    lines = list(found.values())
    if grids:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*KEY, *COLUMNS], lineterminator="\n")
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

    def recovery(self, arm: Arm) -> Recovery | None:
        """Of the distance; None where one of the three arms has not been trained."""
        grid, data, attack, _ = arm
        three = [(grid, data, NOBODY, UNDEFENDED), (grid, data, attack, UNDEFENDED), arm]
        found = [self.of(one, "distance") for one in three]
        return recovery(*found) if all(found) else None


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
    yield _row(["data", "attack", "defence", "seeds", *heads, "won back"])
    yield _row(["---"] * (len(columns) + 5))
    missed: dict[str, list[str]] = {}
    for arm, own in figures.arms.items():
        if arm[0] != grid:
            continue
        values = {name: list(figures.of(arm, name).values()) for name in columns}
        won = figures.recovery(arm) if arm[2] != NOBODY and arm[3] != UNDEFENDED else None
        back = "" if won is None or won.value is None else f"{won.value:.2f}"
        if back and won and won.value is not None and won.value < RECOVERY:
            back = f"**{back}**"
        yield _row(
            [*arm[1:], str(len(own)), *(COLUMNS[name].told(values[name]) for name in columns), back]
        )
        for name in columns:
            if COLUMNS[name].missed(values[name]):
                missed.setdefault(f"{arm[3]}: {COLUMNS[name].head}", []).append(arm[2])
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
    figures = Figures(keep(options.kept, options.grids))
    for grid in dict.fromkeys(arm[0] for arm in figures.arms):
        print(f"\n{grid}: presence at the end, and AUROC\n")
        print("\n".join(overview(figures, grid)))
        print(f"\n{grid}\n")
        print("\n".join(details(figures, grid, options.columns)))


if __name__ == "__main__":
    main()
