"""Who is told what happens in a run: the screen, the run directory, and loggers beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgan.settings import Experiment, Tracking
from fedgan.tracking.base import Observer, Observers

if TYPE_CHECKING:
    from torch import Tensor

    from fedgan.tracking.console import Measuring
    from fedgan.tracking.guard import Guarded, Logger


def say(line: str) -> None:
    """A plain line on the screen, before there are observers."""
    print(line, flush=True)


def preparing() -> Measuring:
    """Progress on the screen before there are observers; see `Measuring`."""
    from rich.console import Console

    from fedgan.tracking.console import Measuring

    return Measuring(Console(file=sys.stdout))


def observers(settings: Experiment, run_dir: Path) -> Observers:
    """Everybody who is told of this run; for rank 0.

    The run directory's own tables come first, since loggers read the rounds before a resume in
    them; loggers come last, so that log.txt is still open when they are closed.
    """
    from rich.console import Console

    from fedgan.tracking.console import LogFile, Screen
    from fedgan.tracking.evaluations import Evaluations
    from fedgan.tracking.exhibits import Exhibits
    from fedgan.tracking.pictures import Pictures
    from fedgan.tracking.records import Records

    own: list[Observer] = [Records(), Pictures(), Evaluations(), Exhibits()]
    screens: list[Observer] = [LogFile(run_dir / "log.txt"), Screen(Console(file=sys.stdout))]
    return Observers([*own, *screens, *loggers(settings.tracking)])


def loggers(tracking: Tracking) -> list[Guarded]:
    """The loggers that are switched on, none of which can make a run fail."""
    from fedgan.tracking.guard import Guarded

    switches: dict[str, tuple[bool, Callable[[Tracking], Logger]]] = {
        "W&B": (tracking.wandb.project is not None and tracking.wandb.mode != "disabled", _wandb),
        "TensorBoard": (tracking.tensorboard, _tensorboard),
    }

    def guarded(name: str, make: Callable[[Tracking], Logger]) -> Guarded:
        return Guarded(name, lambda: make(tracking))

    return [guarded(name, make) for name, (on, make) in switches.items() if on]


def tell_of_evaluation(
    settings: Experiment,
    run_dir: Path,
    labels: dict[str, Any],
    evaluation: dict[str, Any],
    pictures: dict[str, Tensor],
) -> None:
    """What `fedgan evaluate` has found, to the loggers of the run; for rank 0."""
    for logger in loggers(settings.tracking):
        logger.on_later_evaluation(run_dir, labels, evaluation, pictures)
        logger.close()


def _wandb(tracking: Tracking) -> Logger:
    from fedgan.tracking.wandb import WandbTracker

    return WandbTracker(tracking.wandb)


def _tensorboard(tracking: Tracking) -> Logger:
    from fedgan.tracking.tensorboard import TensorBoardTracker

    return TensorBoardTracker()
