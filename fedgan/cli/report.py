"""fedgan report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fedgan.errors import UserError

REPORT = """\
Writes one HTML file about a run, or about all finished runs of a grid: what it came to, samples
over the rounds, losses, flags, weights, figures and the config. Of a grid its verdict, ranking and
leaderboard are those of `fedgan compare`. It opens from the disk in any browser and needs no
network.
"""


def add(commands: Any) -> None:
    """Adds this command to the parser's."""
    report = commands.add_parser(
        "report",
        help="write one HTML file about a run or a grid",
        description=REPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    report.add_argument("source", metavar="RUN|GRID_DIR")
    report.add_argument("--out", metavar="FILE.html", help="where it goes; report.html in there")
    report.set_defaults(action=_report)


def _report(command: argparse.Namespace, rest: list[str]) -> int:
    out = None if command.out is None else Path(command.out)
    if out is not None and (out.is_dir() or out.suffix not in (".html", ".htm")):
        raise UserError(f"report: --out: {out} is no name of a file.html")
    from fedgan.report import write_report

    print(f"report    {write_report(Path(command.source), out)}")
    return 0
