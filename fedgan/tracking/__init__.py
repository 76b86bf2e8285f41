"""Who is told what happens in a run: the screen, the run directory, W&B."""

from __future__ import annotations

import sys
from pathlib import Path

from fedgan.settings import Experiment
from fedgan.tracking.base import Observer, Observers


def say(line: str) -> None:
    """A plain line on the screen, before there are observers."""
    print(line, flush=True)


def observers(settings: Experiment, run_dir: Path) -> Observers:
    """Everybody who is told of this run; for rank 0."""
    from rich.console import Console

    from fedgan.tracking.console import LogFile, Screen
    from fedgan.tracking.pictures import Pictures
    from fedgan.tracking.records import Records

    members: list[Observer] = [
        Records(),
        Pictures(),
        LogFile(run_dir / "log.txt"),
        Screen(Console(file=sys.stdout)),
    ]
    if settings.tracking.wandb.project is not None and settings.tracking.wandb.mode != "disabled":
        from fedgan.tracking.wandb import WandbTracker

        members.insert(2, WandbTracker(settings.tracking.wandb))
    return Observers(members)
