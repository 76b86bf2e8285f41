"""A training run on TensorBoard: event files in the run directory."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fedgan import config
from fedgan.tracking.base import RoundRecord, RunInfo
from fedgan.tracking.guard import Logger
from fedgan.tracking.pictures import sample_grid
from fedgan.tracking.series import CHARTED, scalars

if TYPE_CHECKING:
    from lightning.pytorch.loggers import TensorBoardLogger

FOLDER, FINAL, LATER = "tensorboard", "final", "evaluated"


class TensorBoardTracker(Logger):
    """The numbers of every round, samples and pictures of evaluations, in RUN_DIR/tensorboard.

    Clients are tags `g_loss/client 0` and so on, and all of them one chart under Custom Scalars.
    (`add_scalars` would make a folder of event files for each client, whose rounds a resume cannot
    take back.) Final figures, with the run's labels as hyperparameters, are a run of its own,
    `final`, and what `fedgan evaluate` finds is `evaluated`; both are written anew each time. After
    a resume TensorBoard drops the rounds that are played again.

    Raises:
        ModuleNotFoundError: where neither tensorboard nor tensorboardX is installed.
    """

    def __init__(self) -> None:
        from lightning.pytorch.loggers import TensorBoardLogger

        try:
            TensorBoardLogger(".")  # writes nothing yet
        except ModuleNotFoundError:
            hint = "not installed; `pip install 'fedgan[tensorboard]'` gets it"
            raise ModuleNotFoundError(hint) from None
        self._logger: TensorBoardLogger | None = None

    def on_start(self, info: RunInfo) -> None:
        self._info = info
        again = info.first_round > 1
        self._logger = _logger(info.run_dir, "", purge_step=info.first_round if again else None)
        writer = self._logger.experiment
        writer.add_custom_scalars(
            {
                "clients": {
                    key: ["Multiline", [f"^{key}/client "]] for key in (*CHARTED, "weight")
                },
                "detection": {"flagged": ["Multiline", ["^detection/.*_flagged"]]},
            }
        )
        if not again:
            writer.add_text("config", f"```yaml\n{config.dump(info.settings)}```", 0)

    def on_evaluation(
        self, round: int, evaluation: dict[str, Any], pictures: dict[str, Tensor]
    ) -> None:
        figures = {f"full/{name}": value for name, value in evaluation["figures"].items()}
        self._open.log_metrics(_finite(figures), step=round)
        _add_pictures(self._open, pictures, round)

    def on_round(self, record: RoundRecord) -> None:
        values = scalars(record)
        del values["round"]
        self._open.log_metrics(_finite(values), step=record.round)
        if record.samples is not None:
            picture = np.asarray(sample_grid(record.samples, self._info.classes))
            writer = self._open.experiment
            writer.add_image("samples", picture, record.round, dataformats="HWC")
        self._open.experiment.flush()

    def on_end(self, summary: dict[str, Any]) -> None:
        info = self._info
        _write_alone(info.run_dir, FINAL, info.labels, summary["figures"], {}, summary["rounds"])

    def on_later_evaluation(
        self,
        run_dir: Path,
        labels: dict[str, Any],
        evaluation: dict[str, Any],
        pictures: dict[str, Tensor],
    ) -> None:
        round = evaluation["round"]
        _write_alone(run_dir, LATER, labels, evaluation["figures"], pictures, round)

    def close(self) -> None:
        if self._logger is not None:
            self._logger.finalize("closed")

    @property
    def _open(self) -> TensorBoardLogger:
        assert self._logger is not None  # the guard tells nothing more after a failed start
        return self._logger


def _logger(run_dir: Path, name: str, purge_step: int | None = None) -> TensorBoardLogger:
    from lightning.pytorch.loggers import TensorBoardLogger

    folder = run_dir / FOLDER
    return TensorBoardLogger(
        folder, name=name, version="", default_hp_metric=False, purge_step=purge_step
    )


def _write_alone(
    run_dir: Path,
    name: str,
    labels: dict[str, Any],
    figures: dict[str, float],
    pictures: dict[str, Tensor],
    round: int,
) -> None:
    """Figures as a TensorBoard run of its own, in place of an earlier one."""
    shutil.rmtree(run_dir / FOLDER / name, ignore_errors=True)
    logger = _logger(run_dir, name)
    found = {f"{name}/{key}": value for key, value in _finite(figures).items()}
    logger.log_hyperparams(labels, found, step=round)
    _add_pictures(logger, pictures, round)
    logger.finalize("closed")


def _add_pictures(logger: TensorBoardLogger, pictures: dict[str, Tensor], round: int) -> None:
    for name, picture in pictures.items():
        logger.experiment.add_image(name, picture, round)


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if math.isfinite(value)}
