"""The runs that a comparison is about, and whether they can be compared at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, product
from pathlib import Path
from typing import Any, Literal

from fedgan.comparison.names import natural
from fedgan.errors import UserError
from fedgan.runs import (
    NOBODY,
    UNDEFENDED,
    GridRuns,
    Labels,
    Missing,
    Run,
    is_grid_dir,
    read_grid_dir,
    read_runs,
)

SAME = ("data", "partition", "federation", "model")
"""Groups of the config that all runs on the same data must have in common."""
MAY_DIFFER = ("client_timeout", "min_clients")
"""Keys of these groups that change nothing unless something goes wrong."""
TOLD = ("loss", "training")
"""Groups that an attack or a defence of a grid may change; the comparison then says so."""
Part = Literal["attack", "defense"]


def read_all(paths: Sequence[Path]) -> GridRuns:
    """The finished runs in run directories and grid directories, and what the grids lack.

    Runs outside a grid with the same kind of attack, or of defence, but other arguments are told
    apart by these, as in `patch (size=5)`. Raises `UserError` where a path is neither, or a run of
    its own has not finished.
    """
    grids = [read_grid_dir(path) for path in paths if is_grid_dir(path)]
    runs = read_runs([path for path in paths if not is_grid_dir(path)])
    for part in ("attack", "defense"):
        runs = _told_apart(runs, part)
    return GridRuns(
        [run for grid in grids for run in grid.runs] + runs,
        [one for grid in grids for one in grid.missing],
    )


def check_comparable(runs: Sequence[Run]) -> None:
    """Raises `UserError`, which names two runs, where runs on the same data differ in more than
    attack, defence and seed, were not measured alike, or are of the same cell."""
    cells: dict[Labels, Run] = {}
    by_seed: dict[tuple[str, int], Run] = {}
    by_label: dict[tuple[str, str, str], Run] = {}
    for run in runs:
        labels = run.labels
        if labels in cells:
            raise UserError(
                f"compare: {cells[labels].path} and {run.path} are both {words(labels)}; name one"
            )
        cells[labels] = run
        first = next(one for one in cells.values() if one.labels.data == labels.data)
        _check_pair(first, run, _setup)
        # an encoder that is fitted to the data has another fingerprint with another seed
        _check_pair(by_seed.setdefault((labels.data, labels.seed), run), run, _fingerprints)
        for part in ("attack", "defense"):
            label = getattr(labels, part)
            if label not in (NOBODY, UNDEFENDED):
                rival = by_label.setdefault((labels.data, part, label), run)
                _check_pair(rival, run, lambda one, part=part: _flat(_component(one, part)))


def side_effects(runs: Sequence[Run]) -> Iterator[str]:
    """What else than attack and defence differs between runs on the same data, in words: a defence
    may be another loss, but whoever reads its row should know."""
    for data, those in groupby(sorted(runs, key=lambda run: run.labels), lambda r: r.labels.data):
        found: dict[str, dict[str, set[str]]] = {}
        for run in those:
            for group in TOLD:
                for key, value in _flat(asdict(getattr(run.settings, group))).items():
                    values = found.setdefault(f"{group}.{key}", {})
                    values.setdefault(str(value), set()).add(
                        f"{run.labels.attack} / {run.labels.defense}"
                    )
        for key, values in found.items():
            if len(values) > 1:
                told = "; ".join(
                    f"{value} with {_some(sorted(who))}" for value, who in sorted(values.items())
                )
                yield f"{data}: {key} differs too: {told}"


def words(labels: Labels) -> str:
    """Labels as they stand in an error.

    >>> words(Labels("brain-mri", "patch", "none", 2))
    'brain-mri, attack patch, defence none, seed 2'
    """
    return f"{labels.data}, attack {labels.attack}, defence {labels.defense}, seed {labels.seed}"


def trigger_of(run: Run) -> str:
    """Which trigger a run has looked for; presences of two are of two things."""
    attack = run.settings.attack
    return repr((attack.name, attack.class_path, attack.init_args, attack.only_label))


@dataclass(frozen=True)
class Gap:
    """A run that a comparison lacks: its labels, and in words why."""

    data: str
    attack: str
    defense: str
    seed: int
    why: str


def lacking(runs: Sequence[Run], missing: Sequence[Missing], figure: str) -> tuple[Gap, ...]:
    """Cells without a finished run, of all combinations that there are on each data set, and those
    whose run has not the figure. `missing` says of some what became of them."""
    why = {one.labels: one.state for one in missing}
    for run in runs:
        if figure not in run.figures:
            why[run.labels] = f"{figure} was not measured, or is not finite"
    there = [run.labels for run in runs]
    known = [*there, *why]
    for data in {labels.data for labels in known}:
        own = [labels for labels in known if labels.data == data]
        parts = (
            {NOBODY, *(labels.attack for labels in own)},
            {UNDEFENDED, *(labels.defense for labels in own)},
            {labels.seed for labels in own},
        )
        for attack, defense, seed in product(*parts):
            labels = Labels(data, attack, defense, seed)
            if labels not in there:
                why.setdefault(labels, "is not among the runs")
    return tuple(Gap(*labels, why[labels]) for labels in sorted(why, key=in_order))


def in_order(labels: Sequence[Any]) -> Any:
    """A key that sorts (data, attack, defence) and whole labels: by name and the numbers in it,
    nobody and undefended first."""
    data, attack, defense, *seed = labels
    return (
        natural(data),
        attack != NOBODY,
        natural(attack),
        defense != UNDEFENDED,
        natural(defense),
        *seed,
    )


def _check_pair(one: Run, other: Run, told: Any) -> None:
    ours, theirs = told(one), told(other)
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"compare: {one.path} and {other.path} cannot be compared: {key} is "
                f"{ours.get(key)} in the first and {theirs.get(key)} in the second"
            )


def _setup(run: Run) -> dict[str, Any]:
    """All that is the same in every run on the same data."""
    found: dict[str, Any] = {"rounds that were played": run.summary["rounds"]}
    for group in SAME:
        for key, value in _flat(asdict(getattr(run.settings, group))).items():
            if key not in MAY_DIFFER:
                found[f"{group}.{key}"] = value
    found["number of images measured"] = run.final.get("samples")
    found["encoders"] = ", ".join(one["name"] for one in encoders(run))
    return found


def _fingerprints(run: Run) -> dict[str, Any]:
    return {f"fingerprint of {one['name']}": one.get("fingerprint") for one in encoders(run)}


def encoders(run: Run) -> list[dict[str, Any]]:
    """What a run's final figures were seen by. Raises `UserError` where its summary does not say,
    as of an older fedgan."""
    found = run.final.get("encoders")
    if not isinstance(found, list) or not found:
        raise UserError(
            f"compare: {run.path} does not say what it was measured by; `fedgan evaluate "
            f"{run.path}` does it anew"
        )
    return found


def _component(run: Run, part: str) -> dict[str, Any]:
    values = asdict(getattr(run.settings, part))
    if values.get("share") is not None:  # then who attacks is drawn by the seed
        del values["clients"]
    return values


def _told_apart(runs: list[Run], part: str) -> list[Run]:
    """The runs with, in one part of their labels, the settings in which equal labels differ."""
    settings = [_flat(_component(run, part)) for run in runs]
    found = []
    for run, mine in zip(runs, settings, strict=True):
        label = getattr(run.labels, part)
        alike = [
            theirs
            for other, theirs in zip(runs, settings, strict=True)
            if getattr(other.labels, part) == label
        ]
        keys = sorted({key for theirs in alike for key in theirs})
        differ = [key for key in keys if len({repr(theirs.get(key)) for theirs in alike}) > 1]
        if differ and label not in (NOBODY, UNDEFENDED):
            told = ", ".join(f"{key}={mine.get(key, 'default')}" for key in differ)
            labels = Labels(**{**run.labels._asdict(), part: f"{label} ({told})"})
            found.append(replace(run, labels=labels))
        else:
            found.append(run)
    return found


def _some(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """Nested values by dotted key; arguments of a component by their own name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            prefix = "" if key == "init_args" else f"{key}."
            found |= {f"{prefix}{inner}": one for inner, one in _flat(value).items()}
        else:
            found[key] = value
    return found
