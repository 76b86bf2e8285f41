"""Runs side by side: attacks against defences, over data sets and seeds.

`compare` reads run directories and grid directories; a `Comparison` is plain values, which
`fedgan.comparison.output` writes as a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from fedgan.comparison.names import has_direction, less_is_better
from fedgan.comparison.reading import (
    Gap,
    check_comparable,
    encoders,
    lacking,
    read_all,
    side_effects,
    trigger_of,
)
from fedgan.comparison.spread import LEVEL, Difference, Spread
from fedgan.comparison.table import Comparison, Place, Row, make_ranking, make_rows
from fedgan.errors import UserError
from fedgan.runs import NOBODY, UNDEFENDED, Missing, Run

__all__ = [
    "Comparison",
    "Difference",
    "Gap",
    "Place",
    "Row",
    "Spread",
    "compare",
    "compare_runs",
    "distance_of",
]


def compare(paths: str | Path | Iterable[str | Path], *, figure: str | None = None) -> Comparison:
    """Holds runs side by side: run directories, a grid directory, or several of these.

    Args:
        paths: the directories.
        figure: what is compared, by its name in summary.json; the final Frechet distance in the
            first encoder if not given.

    Raises `UserError`, in one line, for fewer than two finished runs, runs that cannot be compared
    (other data, clients, rounds, encoders or sample counts on data of one label; two of one cell),
    and a figure that has not been measured or has no better way.

    >>> import fedgan
    >>> found = fedgan.compare("grids/smoke")  # doctest: +SKIP
    >>> [(one.place, one.defense, one.attack) for one in found.ranking]  # doctest: +SKIP
    [(1, 'feddetect', 'patch'), (2, 'none', 'patch')]
    """
    several = [paths] if isinstance(paths, (str, Path)) else list(paths)
    runs, missing = read_all([Path(path) for path in several])
    return compare_runs(runs, missing, figure=figure)


def compare_runs(
    runs: Sequence[Run], missing: Sequence[Missing] = (), *, figure: str | None = None
) -> Comparison:
    """The same of runs that have been read; their order makes no difference.

    `missing` tells of cells without a finished run. Raises `UserError` as `compare` does.
    """
    if len(runs) < 2:
        cells = f" of {len(runs) + len(missing)} cells" if missing else ""
        raise UserError(
            f"compare: needs two finished runs or more, or a grid of them; found {len(runs)}{cells}"
        )
    runs = sorted(runs, key=lambda run: run.labels)
    check_comparable(runs)
    name = figure or distance_of(runs)
    known = {figure for run in runs for figure in run.figures}
    less = less_is_better(name, known)
    _check_measured(runs, name)
    rows = make_rows(runs, name, less_is_better=less, level=LEVEL)
    measured = {}
    for run in runs:
        measured[run.labels.data] = {
            "rounds": run.summary["rounds"],
            "samples": run.final.get("samples"),
            "encoders": [one["name"] for one in encoders(run)],
        }
    return Comparison(
        figure=name,
        less_is_better=less,
        level=LEVEL,
        rows=rows,
        ranking=make_ranking(rows, less_is_better=less, level=LEVEL),
        missing=lacking(runs, missing, name),
        notes=tuple(_notes(runs, rows)),
        measured=measured,
    )


def distance_of(runs: Sequence[Run]) -> str:
    """The Frechet distance that all runs have in common, by the first encoder.

    Raises `UserError` where there is none.
    """
    from fedgan.metrics.fidelity import distance_name

    names = [[distance_name(one["name"]) for one in encoders(run)] for run in runs]
    for name in names[0]:
        if all(name in those for those in names):
            return name
    other = next(i for i, those in enumerate(names) if names[0][0] not in those)
    raise UserError(
        f"compare: {runs[0].path} and {runs[other].path} have no distance in common: "
        f"{names[0][0]} in the first and {names[other][0]} in the second; evaluate both alike"
    )


def _check_measured(runs: Sequence[Run], figure: str) -> None:
    for data in dict.fromkeys(run.labels.data for run in runs):
        own = [run for run in runs if run.labels.data == data]
        if not any(figure in run.figures for run in own):
            known = sorted({name for run in own for name in run.figures if has_direction(name)})
            raise UserError(
                f"compare: no run on {data} has {figure}; they have {', '.join(known) or 'nothing'}"
            )


def _notes(runs: Sequence[Run], rows: Sequence[Row]) -> Iterable[str]:
    yield from side_effects(runs)
    for data in dict.fromkeys(row.data for row in rows):
        own = [row for row in rows if row.data == data]
        clean = [run for run in runs if run.labels[:3] == (data, NOBODY, UNDEFENDED)]
        if not clean:
            yield f"{data}: no run without attack and defence: no ratios, no recovery"
        looked_for = {trigger_of(run) for run in clean}
        strange = {
            run.labels.attack: None
            for run in runs
            if run.labels.data == data
            and run.labels.attack != NOBODY
            and trigger_of(run) not in looked_for
        }
        if clean and strange:
            yield (
                f"{data}: the clean arm looked for another trigger than {', '.join(strange)}: how "
                "much of their leakage is undone is not told"
            )
        if all(row.attack == NOBODY for row in own):
            yield f"{data}: nobody attacks in any run: no worst case, no ranking"
    for name, several in _fitted_by_seed(runs).items():
        yield (
            f"the encoder {name} is another one with every seed ({several} of them): only what is "
            "paired by seed (ratios, differences, recovery) compares like with like"
        )
    single = sum(len(row.seeds) == 1 for row in rows)
    if single:
        yield f"{single} of {len(rows)} rows have one seed: of these, no difference can be shown"


def _fitted_by_seed(runs: Sequence[Run]) -> dict[str, int]:
    """Encoders that are fitted to the data anew with each seed, and how many there are of each."""
    found: dict[tuple[str, str], set[str]] = {}
    for run in runs:
        for one in encoders(run):
            key = (run.labels.data, one["name"])
            found.setdefault(key, set()).add(str(one.get("fingerprint")))
    return {name: len(those) for (_, name), those in found.items() if len(those) > 1}
