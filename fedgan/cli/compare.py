"""fedgan compare."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgan.comparison import Comparison

COMPARE = """\
Holds runs of several attacks, defences, data sets and seeds side by side: what each attack cost
under each defence, how much of it was undone, and the defences by their worst case over attacks.
Of a grid directory it also writes leaderboard.csv, .md and .tex there; --out names another folder.

Differences are called better or worse, and stand in bold, only where the spread of the seeds shows
them, after Holm's correction for all rows; one seed shows nothing.
"""


def add(commands: Any) -> None:
    """Adds the command to the parser's."""
    compare = commands.add_parser(
        "compare",
        help="a leaderboard of runs: attacks against defences, over seeds",
        usage="fedgan compare RUN... | GRID_DIR [options]",
        description=COMPARE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument(
        "paths", nargs="+", metavar="RUN", help="run directories, or a grid directory"
    )
    compare.add_argument(
        "--figure", help="what is compared; the Frechet distance in the first encoder"
    )
    compare.add_argument(
        "--out",
        metavar="FOLDER",
        help="where leaderboard.csv, .md and .tex are written; leaderboard_FIGURE with --figure",
    )
    compare.add_argument(
        "--format",
        choices=("table", "csv", "md", "tex", "json"),
        default="table",
        help="what is printed; table",
    )
    compare.set_defaults(action=_compare)


def _compare(command: argparse.Namespace, rest: list[str]) -> int:
    from rich.console import Console

    from fedgan.comparison import compare
    from fedgan.comparison.output import FORMATS, LEADERBOARD, write_leaderboard
    from fedgan.comparison.screen import print_comparison
    from fedgan.runs import is_grid_dir

    found = compare(command.paths, figure=command.figure)
    if command.format == "table":
        wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ  # a file has no edge
        print_comparison(Console(width=160 if wide else None), found)
    else:
        sys.stdout.write(FORMATS[command.format](found))
    own = [Path(path) for path in command.paths if is_grid_dir(Path(path))]
    grid = own[0] if len(own) == len(command.paths) == 1 else None
    folder = Path(command.out) if command.out else grid
    if folder is None:
        return 0
    # the grid's own leaderboard stays that of distances
    stem = f"{LEADERBOARD}_{command.figure}" if command.figure else LEADERBOARD
    written = write_leaderboard(folder, found, stem.replace("/", "-"))
    if grid is not None and not command.figure:
        tell_loggers(grid, found, written)
    for path in written:
        # beside what a script reads
        print(f"written   {path}", file=sys.stderr if command.format != "table" else sys.stdout)
    return 0


def tell_loggers(grid: Path, comparison: Comparison, files: list[Path]) -> None:
    """The leaderboard of a grid to W&B, in a run of its own in the group of the grid's runs, where
    they are on W&B. Never fails; see `log_leaderboard`."""
    from fedgan.comparison.output import flat_rows
    from fedgan.rundir import read_settings
    from fedgan.tracking.leaderboard import log_leaderboard

    wandb = read_settings(Path(comparison.rows[0].runs[0]), []).tracking.wandb
    log_leaderboard(flat_rows(comparison), files, replace(wandb, tags=[]), grid)
