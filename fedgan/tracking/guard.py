"""Loggers, and the guard that keeps them from making a run fail.

A logger sends copies of what the run directory holds to somewhere else: W&B, TensorBoard. Losing a
copy costs nothing that cannot be had again, so a logger that breaks is warned of once and dropped.
What writes the run directory itself (tables, pictures, evaluations, checkpoints, log.txt) is no
logger: without it there is no result, and on a full disk the run must stop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgan.tracking.base import Observer, RoundRecord, RunInfo

log = logging.getLogger(__name__)


class Logger(Observer):
    """An observer that copies to somewhere else. It may raise whatever it likes."""

    def on_later_evaluation(
        self,
        run_dir: Path,
        labels: dict[str, Any],
        evaluation: dict[str, Any],
        pictures: dict[str, Tensor],
    ) -> None:
        """What `fedgan evaluate` has found of a run that is over, in place of all other events but
        `close`; `labels` are `RunInfo.labels`."""


def attempt(name: str, action: Callable[[], None]) -> bool:
    """Whether `action` has come to its end; a failure is told in one line that calls it `name`.
    Signals and Ctrl-C pass."""
    try:
        action()
    except Exception as error:  # whatever it is, the run goes on
        lines = str(error).splitlines() or [""]
        log.warning("%s is left out from here on: %s: %s", name, type(error).__name__, lines[0])
        return False
    return True


class Guarded(Logger):
    """A logger whose failure is one warning: after it, the logger hears of nothing more.

    A logger that has failed is still asked to close when the run ends,
    since it may hold files and threads; what it raises then is told to nobody.

    Args:
        name: what the user knows it by.
        make: makes the logger, which may fail too, as where a package is missing.
    """

    def __init__(self, name: str, make: Callable[[], Logger]) -> None:
        self.name = name
        self.broken = False
        self.logger: Logger | None = None
        self._try(lambda: self._make(make))

    def _make(self, make: Callable[[], Logger]) -> None:
        self.logger = make()

    def _try(self, action: Callable[[], None]) -> None:
        if not self.broken:
            self.broken = not attempt(self.name, action)

    def _tell(self, event: str, *args: Any) -> None:
        self._try(lambda: getattr(self.logger, event)(*args))

    def on_start(self, info: RunInfo) -> None:
        self._tell("on_start", info)

    def on_client(self, round: int, client: int, images: int) -> None:
        self._tell("on_client", round, client, images)

    def on_measured(self, what: str, done: int, total: int, closely: bool) -> None:
        self._tell("on_measured", what, done, total, closely)

    def on_evaluation(
        self, round: int, evaluation: dict[str, Any], pictures: dict[str, Tensor]
    ) -> None:
        self._tell("on_evaluation", round, evaluation, pictures)

    def on_round(self, record: RoundRecord) -> None:
        self._tell("on_round", record)

    def sync(self) -> None:
        self._tell("sync")

    def on_end(self, summary: dict[str, Any]) -> None:
        self._tell("on_end", summary)

    def on_later_evaluation(
        self,
        run_dir: Path,
        labels: dict[str, Any],
        evaluation: dict[str, Any],
        pictures: dict[str, Tensor],
    ) -> None:
        self._tell("on_later_evaluation", run_dir, labels, evaluation, pictures)

    def close(self) -> None:
        if not self.broken:
            self._tell("close")
        elif self.logger is not None:
            try:
                self.logger.close()
            except Exception as error:
                log.debug("%s: %s", self.name, error)
