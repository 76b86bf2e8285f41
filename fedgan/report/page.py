"""Everything about a run, or a grid of runs, in one HTML file that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedgan.cache import write_atomically
from fedgan.comparison import Comparison, Gap, compare_runs
from fedgan.comparison.cells import missing_lines
from fedgan.errors import UserError
from fedgan.report import board, configs, parts, tables, verdict
from fedgan.report.pictures import films
from fedgan.report.scenes import scenes_of
from fedgan.report.words import size, whole
from fedgan.runs import Missing, Run, is_grid_dir, is_run, read_grid_dir, read_run

if TYPE_CHECKING:
    from jinja2 import Environment

REPORT = "report.html"
HERE = Path(__file__).parent


class Report(NamedTuple):
    """A report that was written: where, how many bytes, and of how many runs."""

    path: Path
    n_bytes: int
    runs: int

    def __str__(self) -> str:
        """
        >>> str(Report(Path("runs/x/report.html"), 1_234_567, 1))
        'runs/x/report.html (1 run, 1.2 MB)'
        """
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        return f"{self.path} ({runs}, {size(self.n_bytes)})"


def write_report(source: Path, out: Path | None = None) -> Report:
    """Writes the page about a run directory or a grid directory to `out`, else into it as
    report.html. The same directory gives the same bytes.

    Leaderboard, ranking and verdict of a grid are those of `fedgan.compare`. Where its runs cannot
    be compared, the page has pictures, curves and single runs, and a note says why.

    Size: at most some 11 MB of pictures, which thin out and shrink until they fit, and the curves
    of some 18 runs: 19 MB for 96 runs of 20 clients and 200 rounds.

    Cost: some 8 s for 8 runs of 4 clients, 46 s for those 96, of one core.

    Raises `UserError` where there is no finished run, or the page cannot be written.
    """
    if not source.is_dir():
        raise UserError(f"report: {source}: no such folder")
    missing: list[Missing] = []
    grid = None
    if is_grid_dir(source):
        grid = source
        runs, missing = read_grid_dir(source)
        if not runs:
            raise UserError(f"report: {source}: no cell of this grid has finished")
    elif is_run(source):
        runs = [read_run(source)]
    else:
        raise UserError(f"report: {source}: neither a run (config.yaml) nor a grid (grid.json)")
    text = render(runs, source.resolve().name, grid=grid, missing=missing)
    path = out or source / REPORT
    try:
        write_atomically(path, partial(_write, text))
    except OSError as error:
        raise UserError(f"report: cannot write {path}: {error.strerror}") from None
    return Report(path, len(text.encode()), len(runs))


def render(
    runs: Sequence[Run], title: str, *, grid: Path | None = None, missing: Sequence[Missing] = ()
) -> str:
    """The page as text. Without `grid` it is that of a single run."""
    comparison, refusal = _compared(runs, missing) if grid else (None, "")
    page = (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            is_grid=grid is not None,
            facts=_facts(runs),
            verdicts=_verdicts(runs, comparison),
            notes=_notes(runs, missing, comparison, refusal),
            boards=_boards(comparison) if comparison else [],
            method=comparison.method if comparison else "",
            runs=tables.runs_table(runs, _distance(runs, comparison)) if grid else None,
            made=configs.made_by(runs, grid),
            style=(HERE / "page.css").read_text(encoding="utf-8"),
            script=(HERE / "page.js").read_text(encoding="utf-8"),
            **_looks(runs, single=grid is None),
        )
    )
    return page.lstrip()


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["whole"] = whole
    return environment


def _looks(runs: Sequence[Run], *, single: bool) -> dict[str, Any]:
    """What there is to look at: pictures, curves, and panels of single runs."""
    scenes = scenes_of(runs)
    shown = _unique([run for scene in scenes for _, run in scene.shown()])
    panels = [parts.panel(i, run) for i, run in enumerate(shown)]
    pictures = dict(zip((run.path for run in shown), films(shown), strict=True))
    return {
        # Each picture once, though a clean run stands in the scene of every attack.
        "film": {
            run.path.name: {number: grid.uri for number, grid in pictures[run.path].items()}
            for run in shown
        },
        "scenes": [parts.scene(i, scene, pictures) for i, scene in enumerate(scenes)],
        "courses": [parts.course(i, scene, single=single) for i, scene in enumerate(scenes)],
        "panels": panels,
        # Of a grid, the first run in which there is most to see.
        "start": next((p["id"] for p in panels if p["attacked"] and p["flags"]), 0),
        "more": len(runs) - len(shown),
    }


def _compared(runs: Sequence[Run], missing: Sequence[Missing]) -> tuple[Comparison | None, str]:
    """The comparison; or None, and why there is none."""
    try:
        return compare_runs(runs, missing), ""
    except UserError as error:
        return None, _without_folders(str(error).removeprefix("compare: "), runs)


def _without_folders(text: str, runs: Sequence[Run]) -> str:
    """Runs by their names: where they lie is nothing that a page should tell."""
    for run in runs:
        text = text.replace(str(run.path), run.path.name)
    return text


def _distance(runs: Sequence[Run], comparison: Comparison | None) -> str:
    return comparison.figure if comparison else verdict.own_distance(runs[0])


def _boards(comparison: Comparison) -> list[dict[str, Any]]:
    """For each data set its ranking, its heat maps and its leaderboard."""
    return [
        {
            "data": data if len(comparison.data) > 1 else "",
            "ranking": board.ranking(comparison, data),
            "heats": board.heat_maps(comparison, data),
            "tables": board.leaderboard(comparison, data),
        }
        for data in comparison.data
    ]


def _facts(runs: Sequence[Run]) -> list[str]:
    """The line beneath the title."""
    first = runs[0]
    seeds = sorted({run.labels.seed for run in runs})
    rounds = sorted({run.summary["rounds"] for run in runs})
    clients = sorted({len(run.summary["clients"]) for run in runs})
    return [
        *([f"{len(runs)} runs"] if len(runs) > 1 else []),
        ", ".join(dict.fromkeys(run.labels.data for run in runs)),
        f"{' or '.join(map(str, clients))} client{'' if clients == [1] else 's'}",
        f"{' or '.join(map(str, rounds))} round{'' if rounds == [1] else 's'}",
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
        f"fedgan {first.summary.get('versions', {}).get('fedgan', '')}",
    ]


def _verdicts(runs: Sequence[Run], comparison: Comparison | None) -> list[dict[str, Any]]:
    """For each data set its name and labelled sentences."""
    if comparison is not None:
        several = len(comparison.data) > 1
        return [
            {
                "data": data if several else "",
                "lines": verdict.verdict_of_grid(comparison, runs, data),
            }
            for data in comparison.data
        ]
    lines = verdict.verdict_of_run(runs[0]) if len(runs) == 1 else verdict.not_compared(runs)
    return [{"data": "", "lines": lines}]


def _notes(
    runs: Sequence[Run], missing: Sequence[Missing], comparison: Comparison | None, refusal: str
) -> list[str]:
    """What a reader must know: what is missing, the comparison's notes or why there is none, and
    the runs' own notes, each once."""
    lacks = comparison.missing if comparison else [Gap(*m.labels, m.state) for m in missing]
    found = [f"Missing: {_without_folders(line, runs)}" for line in missing_lines(lacks)]
    if refusal:
        found.append(f"No leaderboard: {refusal}")
    found += comparison.notes if comparison else []
    told: dict[str, list[str]] = {}
    for run in runs:
        presence = run.details.get("presence", {}).get("notes", [])
        for note in (*run.summary.get("notes", []), *presence):
            told.setdefault(note, []).append(run.path.name)
    for note, names in told.items():
        where = "" if len(names) == len(runs) else f" ({', '.join(names)})"
        found.append(note + where)
    return found


def _unique(runs: Sequence[Run]) -> list[Run]:
    """Each once: the clean run stands in the scene of every attack."""
    return list({run.path: run for run in runs}.values())


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
