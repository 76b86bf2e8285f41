"""fedgan grid."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgan.cli.runs import slurm_options
from fedgan.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from fedgan.grid.cells import Cell
    from fedgan.grid.folder import Folder

GRID = """\
Trains attack x defence x data x seed over a base config, and always the clean arm (nobody attacks)
and the undefended arm (FedAvg) that a comparison needs. Type it again to go on: finished cells are
skipped, those that were cut off are resumed, those that failed are tried again, and what the grid
file has more now is added. Several machines may work on one grid directory.

GRID.yaml has the keys base (a config), set (what all cells change), data, attacks and defenses (a
label, and what it changes, each), seeds, grid_dir. configs/grids/ has examples, which go by name.

At the end the defences stand by their worst case over attacks on the screen, and the grid has its
leaderboard (see fedgan compare) and its report.html (see fedgan report).
"""


def add(commands: Any) -> None:
    """Adds this command to the parser's."""
    grid = commands.add_parser(
        "grid",
        help="train a grid of experiments: attacks x defences x data x seeds",
        usage="fedgan grid GRID.yaml [--jobs N] [--dry-run] [options] [--key=value ...]",
        description=GRID,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    grid.add_argument(
        "grid", nargs="?", metavar="GRID.yaml", help="YAML file, or the name of one that ships"
    )
    grid.add_argument(
        "--jobs", type=int, help="cells at a time; a CUDA device each, or one where there is none"
    )
    grid.add_argument("--dry-run", action="store_true", help="print cells, hours and disk")
    grid.add_argument("--grid_dir", metavar="DIR", help="grids/ and the file's name, if not given")
    grid.add_argument(
        "--overwrite", action="store_true", help="train cells whose settings have changed anew"
    )
    grid.add_argument("--launcher", choices=("local", "slurm"), default="local")
    slurm_options(grid.add_argument_group("with --launcher slurm, of each cell"))
    grid.set_defaults(takes_overrides=True, action=_grid)


def _grid(command: argparse.Namespace, overrides: list[str]) -> int:
    from rich.console import Console

    from fedgan.grid.cells import read_grid
    from fedgan.grid.check import check
    from fedgan.grid.folder import Folder, count

    _check(command)
    console = Console()
    grid = read_grid(command.grid, command.grid_dir, overrides)
    folder = Folder(grid)
    folder.check(overwrite=command.overwrite)
    stale = folder.stale_measures()
    if stale:
        _say(console, f"note: {stale}; `fedgan evaluate` measures them anew")
    if command.dry_run:
        return _dry_run(console, folder, command.jobs)
    changed = [cell for cell in grid.cells if folder.changed(cell)]
    left = [c for c in grid.cells if folder.state(c) != "finished" or c in changed]
    check(left, anew=changed)
    script = _script(folder, left, command) if left and command.launcher == "slurm" else ""
    folder.prepare(overwrite=command.overwrite)
    _say(console, f"{grid.folder}: {len(grid.cells)} cells: {count(folder.states().values())}")
    if not left:
        _conclude(console, folder.path)
        return 0
    if script:
        return _slurm(console, folder, script)
    return _local(console, folder, left, command, overrides)


def _check(command: argparse.Namespace) -> None:
    from dataclasses import fields

    from fedgan.config import shipped_grids
    from fedgan.slurm import Request

    if command.grid is None:
        raise UserError(f"grid: which grid? one that ships: {', '.join(shipped_grids())}")
    if command.jobs is not None and command.jobs < 1:
        raise UserError(f"--jobs: {command.jobs} is less than 1")
    for item in fields(Request) if command.launcher == "local" else ():
        if getattr(command, item.name) != item.default:
            option = item.name.replace("_", "-")
            raise UserError(f"--{option}: goes with --launcher slurm; here --jobs says how many")


def _local(
    console: Console,
    folder: Folder,
    left: list[Cell],
    command: argparse.Namespace,
    overrides: list[str],
) -> int:
    from fedgan.grid.local import Runner
    from fedgan.grid.machine import share_out
    from fedgan.grid.progress import Progress

    shares = share_out(left, command.jobs)
    cells = folder.grid.cells
    names = {cell.name for cell in left}
    finished = [cell.name for cell in cells if cell.name not in names]
    with Progress(console, cells, finished, len(shares)) as progress:
        outcome = Runner(folder, shares, progress, _again(command, overrides)).run(left)
    _conclude(console, folder.path)
    for name in outcome.held:
        _say(console, f"not finished: {name}: another process is at work on it")
    if not outcome.failed:
        return 0
    _say(console, f"{len(outcome.failed)} of {len(cells)} cells failed; the log of each:")
    for name, why in outcome.failed.items():
        _say(console, f"  {folder.path}/logs/{name}.log: {why}")
    return 1


def _conclude(console: Console, folder: Path) -> None:
    """What the finished cells come to: ranking, leaderboard, report. Where they cannot be compared
    yet, or not at all, that is told; the training has not failed."""
    from fedgan.cli.compare import tell_loggers
    from fedgan.comparison import compare
    from fedgan.comparison.output import write_leaderboard
    from fedgan.comparison.screen import print_ranking
    from fedgan.report import write_report

    try:
        found = compare(folder)
        print_ranking(console, found)
        tell_loggers(folder, found, written := write_leaderboard(folder, found))
        again = shlex.join(["fedgan", "compare", str(folder)])
        _say(console, f"leaderboard  {written[0]}; {again} prints it")
        _say(console, f"report       {write_report(folder).path}")
    except UserError as error:
        _say(console, f"note: no report: {error}")


def _script(folder: Folder, left: list[Cell], command: argparse.Namespace) -> str:
    """The job array of all cells that nobody is at work on. Raises `UserError` for none."""
    from dataclasses import fields

    from fedgan import slurm

    free = [cell for cell in left if folder.state(cell) != "running"]
    if not free:
        raise UserError("all cells that are left are at work elsewhere")
    wanted = {item.name: getattr(command, item.name) for item in fields(slurm.Request)}
    script = slurm.prepare_array(
        folder.path,
        [cell.name for cell in free],
        [cell.experiment.cluster for cell in free],
        slurm.Request(**wanted),
        command.jobs or len(free),
    )
    slurm.find_sbatch()
    return script


def _slurm(console: Console, folder: Folder, script: str) -> int:
    from fedgan import slurm

    number = slurm.hand_in(slurm.find_sbatch(), script)
    _say(console, f"job       {number}; what its tasks do now: squeue -j {number}")
    _say(console, f"output    {folder.path}/logs/")
    _say(console, f"cancel    scancel {number}")
    both = [shlex.join(["fedgan", name, str(folder.path)]) for name in ("compare", "report")]
    _say(console, f"then      {both[0]}; {both[1]}")
    return 0


def _dry_run(console: Console, folder: Folder, jobs: int | None) -> int:
    from rich.table import Table

    from fedgan.grid.estimate import estimates, wall_clock
    from fedgan.grid.machine import share_out
    from fedgan.tracking.console import clock

    shares = share_out(folder.grid.cells, jobs)
    found, absent = estimates(folder, shares[0].threads)
    table = Table(title=str(folder.path), title_justify="left")
    for name in ("cell", "state", "images to train on", "time", "disk"):
        is_word = name in ("cell", "state")
        justify: Any = "left" if is_word else "right"
        table.add_column(name, justify=justify, no_wrap=name != "cell", overflow="fold")
    for one in found:
        if not one.known:
            table.add_row(one.cell.name, one.state, "?", "?", "?")
            continue
        took = "" if one.state == "finished" else clock(one.seconds)
        disk = f"{one.disk / 1e6:,.0f} MB"
        table.add_row(one.cell.name, one.state, f"{one.images:,}", took, disk)
    console.print(table)
    total = wall_clock(found, len(shares))
    todo = [one for one in found if one.state != "finished"]
    _say(
        console, f"{len(found)} cells, {len(todo)} to train: {sum(o.images for o in todo):,} images"
    )
    _say(
        console,
        f"{total / 3600:.1f} hours ({clock(total)}), {len(shares)} at a time on this machine",
    )
    if any(one.known and not one.measured for one in todo):
        _say(console, "by local steps timed here; start, looks and final measures come on top")
    _say(console, f"{sum(one.disk for one in found) / 1e9:.2f} GB of disk")
    unknown = sum(not one.known for one in found)
    for line in absent:
        _say(console, f"not counted: {unknown} cells, whose data is not here: {line}")
    return 0


def _again(command: argparse.Namespace, overrides: list[str]) -> str:
    words = ["fedgan", "grid", command.grid]
    words += ["--jobs", str(command.jobs)] if command.jobs else []
    words += ["--grid_dir", str(Path(command.grid_dir))] if command.grid_dir else []
    return shlex.join([*words, *overrides])


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
