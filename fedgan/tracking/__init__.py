"""Who is told what happens in a run: the screen, the run directory, W&B."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgan.settings import Experiment
from fedgan.tracking.base import Observer, Observers

if TYPE_CHECKING:
    from torch import Tensor

    from fedgan.tracking.console import Measuring


def say(line: str) -> None:
    """A plain line on the screen, before there are observers."""
    print(line, flush=True)


def preparing() -> Measuring:
    """Progress on the screen before there are observers; see `Measuring`."""
    from rich.console import Console

    from fedgan.tracking.console import Measuring

    return Measuring(Console(file=sys.stdout))


def observers(settings: Experiment, run_dir: Path) -> Observers:
    """Everybody who is told of this run; for rank 0."""
    from rich.console import Console

    from fedgan.tracking.console import LogFile, Screen
    from fedgan.tracking.evaluations import Evaluations
    from fedgan.tracking.pictures import Pictures
    from fedgan.tracking.records import Records

    members: list[Observer] = [
        Records(),
        Pictures(),
        Evaluations(),
        LogFile(run_dir / "log.txt"),
        Screen(Console(file=sys.stdout)),
    ]
    if _wants_wandb(settings):
        from fedgan.tracking.wandb import WandbTracker

        members.insert(3, WandbTracker(settings.tracking.wandb))
    return Observers(members)


def tell_of_evaluation(
    settings: Experiment, run_dir: Path, evaluation: dict[str, Any], pictures: dict[str, Tensor]
) -> None:
    """What `fedgan evaluate` has found, to the loggers of the run; for rank 0."""
    if _wants_wandb(settings):
        from fedgan.tracking.wandb import WandbTracker

        WandbTracker(settings.tracking.wandb).evaluated(run_dir, evaluation, pictures)


def _wants_wandb(settings: Experiment) -> bool:
    wandb = settings.tracking.wandb
    return wandb.project is not None and wandb.mode != "disabled"
