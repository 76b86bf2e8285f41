"""One run of Weights & Biases, opened for a while: offline unless told otherwise; it never asks and
never hangs."""

from __future__ import annotations

import inspect
import logging
import os
import secrets
import socket
import threading
import urllib.parse
from functools import partial
from pathlib import Path
from typing import Any

from fedgan.cache import write_atomically
from fedgan.settings import Wandb

LONGEST_FINISH = 120
"""Seconds that the end of a whole run waits for W&B; the other ranks wait with it."""
SHORT_FINISH = 25
"""Seconds that a run waits which has failed or was stopped: the other ranks end after 40, and srun
ends rank 0 after 60, whether it has told the error or not."""
RUN_ID, LAST_STEP = "wandb-run-id.txt", "wandb-last-step.txt"
LONGEST_TAG = 64
"""Characters; W&B refuses longer ones."""
log = logging.getLogger(__name__)


class Session:
    """A folder's W&B run, through Lightning's WandbLogger.

    The folder knows the run's id, so that whoever comes later goes on with the same run, and the
    last step that was sent. Every row has a step of its own, counted on from there: offline, W&B
    cannot ask how far the run has got, and the rows of a second file with the steps of the first
    would take the place of those. Only the last row before a process was killed may come twice,
    with the same values: whether W&B had it on the disk is not known.

    Args:
        settings: where to, and the mode.
        folder: the run directory; W&B's files go into its wandb/.
        name, job_type, tags: of the run; tags are cut to what W&B takes.

    Raises:
        Exception: whatever W&B raises, here and in every method.
    """

    def __init__(
        self,
        settings: Wandb,
        folder: Path,
        *,
        name: str,
        job_type: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        mode = reachable_mode(settings)
        self._last_step = folder / LAST_STEP
        self.is_new = not (folder / RUN_ID).is_file()
        if self.is_new:
            _write(folder / RUN_ID, secrets.token_hex(4))
        self.logger = WandbLogger(
            name=name,
            save_dir=folder,
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            tags=[tag[:LONGEST_TAG] for tag in tags or []],
            job_type=job_type,
            offline=mode == "offline",
            mode=mode,
            id=(folder / RUN_ID).read_text(encoding="utf-8").strip(),
            resume="allow",
            settings=wandb.Settings(silent=True, init_timeout=30, console="off"),
        )
        # Lightning hands it on even where it was not given, and wandb 0.31 warns of it.
        vars(self.logger).get("_wandb_init", {}).pop("anonymous", None)
        self.run = self.logger.experiment
        sent = int(self._last_step.read_text()) if self._last_step.is_file() else -1
        self.step = max(sent, self.run.step - 1)
        """The last step that was sent."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Sends one row; its step is the next one unless a later one is given. A row whose step was
        sent before is left out: W&B cannot take a row back."""
        step = self.step + 1 if step is None else step
        if step > self.step:
            # The one before, which is on the disk by now: where the process is killed at once, this
            # row may be lost, and is to be sent again if its round is played again.
            _write(self._last_step, str(self.step))
            self.run.log(values, step=step, commit=True)
            self.step = step

    def finish(self, patience: float) -> None:
        """Ends the run; waits for W&B for so many seconds at most, and says so when it has not sent
        all by then. Raises what W&B raises."""
        failed: list[Exception] = []

        def end() -> None:
            try:
                self.run.finish()
            except Exception as error:
                failed.append(error)

        # A network that died during the run would keep finish waiting without end.
        last = threading.Thread(target=end, daemon=True)
        last.start()
        last.join(timeout=patience)
        if last.is_alive():
            log.warning("W&B: not all sent after %d s; `wandb sync` sends it", patience)
        elif failed:
            raise failed[0]
        else:
            _write(self._last_step, str(self.step))


def reachable_mode(settings: Wandb) -> str:
    """`online` only where there is a key and the server answers; else `offline` and a word."""
    if settings.mode != "online":
        return settings.mode
    if not has_key():
        log.warning("W&B: no API key (wandb login, or WANDB_API_KEY); logging offline instead")
        return "offline"
    import wandb

    server = os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url
    url = urllib.parse.urlparse(server)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        # wandb.init itself would wait for minutes on a host that is out of reach.
        socket.create_connection((url.hostname or "", port), timeout=5).close()
    except OSError as error:
        log.warning("W&B: %s is out of reach (%s); logging offline instead", url.hostname, error)
        return "offline"
    return "online"


def has_key() -> bool:
    """Whether this machine is logged in to W&B."""
    import wandb

    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return bool(wandb.api.api_key)  # before wandb 0.31


def _write(path: Path, text: str) -> None:
    write_atomically(path, partial(_write_text, text))


def _write_text(text: str, path: Path) -> None:
    path.write_text(text + "\n", encoding="utf-8")
