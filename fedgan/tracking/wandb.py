"""Weights & Biases: offline unless told otherwise; never asks, never hangs, never ends a run."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import urllib.parse
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgan.cache import write_atomically
from fedgan.settings import Wandb
from fedgan.tracking.base import Observer, RoundRecord, RunInfo
from fedgan.tracking.pictures import sample_grid

LONGEST_FINISH = 120
"""Seconds that the end of a whole run waits for W&B; the other ranks wait with it."""
SHORT_FINISH = 25
"""Seconds that a run waits which has failed or was stopped: the other ranks end after 40, and srun
ends rank 0 after 60, whether it has told the error or not."""
RUN_ID = "wandb-run-id.txt"
log = logging.getLogger(__name__)


class WandbTracker(Observer):
    """Logs config, per-round scalars, a table of clients and sample grids through Lightning's
    WandbLogger. The first thing to go wrong is told once, and W&B is left alone from then on."""

    def __init__(self, settings: Wandb) -> None:
        self.settings = settings
        self._broken = self._whole = False
        self._rows: list[dict[str, Any]] = []

    def on_start(self, info: RunInfo) -> None:
        self._info = info
        self._try(self._open)

    def on_round(self, record: RoundRecord) -> None:
        self._rows += record.client_rows()
        self._try(lambda: self._log_round(record))

    def on_end(self, summary: dict[str, Any]) -> None:
        self._try(lambda: self._log_end(summary))
        self._whole = True

    def close(self) -> None:
        self._try(self._finish)

    def on_evaluation(
        self, round: int, evaluation: dict[str, Any], pictures: dict[str, Tensor]
    ) -> None:
        figures = {f"full/{name}": value for name, value in evaluation["figures"].items()}
        self._try(lambda: self._logger.experiment.log({"round": round, **figures}))
        self._try(lambda: self._log_pictures(f"round {round}", pictures))

    def evaluated(
        self, run_dir: Path, evaluation: dict[str, Any], pictures: dict[str, Tensor]
    ) -> None:
        """Adds what `fedgan evaluate` has found to the run's summary."""

        def log_all() -> None:
            self._begin(run_dir)
            self._logger.experiment.summary.update(evaluation["figures"])
            self._log_pictures(f"evaluated after round {evaluation['round']}", pictures)

        self._try(log_all)
        self._whole = True
        self.close()

    def _log_pictures(self, caption: str, pictures: dict[str, Tensor]) -> None:
        import wandb

        for name, picture in pictures.items():
            image = wandb.Image(picture.permute(1, 2, 0).numpy(), caption=caption)
            self._logger.experiment.log({name: image})

    def _try(self, action: Any) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # whatever W&B raises, the training goes on
            self._broken = True
            log.warning("W&B is left out from here on: %s: %s", type(error).__name__, error)

    def _begin(self, run_dir: Path) -> None:
        """Opens the run directory's run: after a resume it is still the same one."""
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        mode, settings = self._reachable_mode(), self.settings
        known = run_dir / RUN_ID
        if not known.is_file():
            write_atomically(known, partial(_write, secrets.token_hex(4)))
        self._logger = WandbLogger(
            name=settings.name or run_dir.name,
            save_dir=run_dir,
            project=settings.project,
            entity=settings.entity,
            offline=mode == "offline",
            mode=mode,
            id=known.read_text(encoding="utf-8").strip(),
            resume="allow",
            settings=wandb.Settings(silent=True, init_timeout=30, console="off"),
        )

    def _open(self) -> None:
        import wandb

        info = self._info
        self._begin(info.run_dir)
        run = self._logger.experiment
        run.define_metric("round")
        run.define_metric("*", step_metric="round")
        self._logger.log_hyperparams(asdict(info.settings))
        table = wandb.Table(["client", "malicious", "images", *info.classes])
        for client, counts in enumerate(info.counts):
            table.add_data(client, client in info.malicious, info.n_images[client], *counts)
        run.log({"clients": table})

    def _reachable_mode(self) -> str:
        """`online` only where there is a key and the server answers; else `offline` and a word."""
        import wandb

        mode = self.settings.mode
        if mode != "online":
            return mode
        if not wandb.api.api_key:
            log.warning("W&B: no API key (wandb login, or WANDB_API_KEY); logging offline instead")
            return "offline"
        url = urllib.parse.urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            # wandb.init itself would wait for minutes on a host that is out of reach.
            socket.create_connection((url.hostname or "", port), timeout=5).close()
        except OSError as error:
            log.warning(
                "W&B: %s is out of reach (%s); logging offline instead", url.hostname, error
            )
            return "offline"
        return "online"

    def _log_round(self, record: RoundRecord) -> None:
        import wandb

        values: dict[str, Any] = dict(record.scalars())
        for row in record.client_rows():
            for key in ("d_loss", "g_loss", "weight", "score"):
                values[f"{key}/client {row['client']}"] = row[key]
        for client, bias in record.critic_bias.items():
            values[f"critic_bias/client {client}"] = bias
        if record.samples is not None:
            picture = sample_grid(record.samples, self._info.classes)
            values["samples"] = wandb.Image(picture, caption=f"round {record.round}")
        self._logger.experiment.log(values)

    def _log_end(self, summary: dict[str, Any]) -> None:
        import wandb

        run = self._logger.experiment
        if self._rows:
            columns = list(dict.fromkeys(key for row in self._rows for key in row))
            # A table's column is of one type: None is what W&B takes for an empty cell.
            data = [
                [None if row.get(k) == "" else row.get(k) for k in columns] for row in self._rows
            ]
            run.log({"client rounds": wandb.Table([*columns], data)})
        run.summary.update(summary["figures"])
        run.summary["generator_sha256"] = summary["generator_sha256"]

    def _finish(self) -> None:
        if hasattr(self, "_logger"):
            # A network that died during the run would keep finish waiting without end.
            last = threading.Thread(target=self._quiet_finish, daemon=True)
            last.start()
            patience = LONGEST_FINISH if self._whole else SHORT_FINISH
            last.join(timeout=patience)
            if last.is_alive():
                log.warning("W&B: not all sent after %d s; `wandb sync` sends it", patience)

    def _quiet_finish(self) -> None:
        try:
            self._logger.experiment.finish()
        except Exception as error:
            self._broken = True
            log.warning("W&B: the end was not written: %s: %s", type(error).__name__, error)


def _write(text: str, path: Path) -> None:
    path.write_text(text + "\n", encoding="utf-8")
