"""One run of Weights & Biases, opened for a while: offline unless told otherwise; it never asks and
never hangs."""

from __future__ import annotations

import inspect
import logging
import math
import os
import secrets
import socket
import threading
import time
import urllib.parse
from collections import deque
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
FLUSH_EVERY = 1.0
"""Seconds between W&B's writes to its offline file; its own are 15, and what is not written is lost
where all of a run's processes are killed."""
SURE_AFTER = 3.0
"""Seconds after which a row is taken to be in that file; where W&B cannot be told, only a run that
has ended is."""
RUN_ID, LAST_STEP = "wandb-run-id.txt", "wandb-last-step.txt"
LONGEST_TAG = 64
"""Characters; W&B refuses longer ones."""
log = logging.getLogger(__name__)


class Session:
    """A folder's W&B run, through Lightning's WandbLogger.

    The folder knows the run's id, so that whoever comes later goes on with the same run, and the
    last step that was sent. Every row has a step of its own, counted on from there: offline, W&B
    cannot ask how far the run has got, and the rows of a second file with the steps of the first
    would take the place of those. Only rows of the last seconds before a process was killed may
    come twice, with the same values: whether W&B had them on the disk is not known.

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

        self._last_step = folder / LAST_STEP
        if not (folder / RUN_ID).is_file():
            _write(folder / RUN_ID, secrets.token_hex(4))
        self._about: dict[str, Any] = {
            "name": name,
            "save_dir": folder,
            "project": settings.project,
            "entity": settings.entity,
            "group": settings.group,
            "tags": [tag[:LONGEST_TAG] for tag in tags or []],
            "job_type": job_type,
            "id": (folder / RUN_ID).read_text(encoding="utf-8").strip(),
            "resume": "allow",
        }
        mode = reachable_mode(settings)
        try:
            self._open(mode)
        except Exception as error:
            if mode != "online":
                raise
            # A wrong key, or a server that takes calls and does not answer.
            line = (str(error).splitlines() or [""])[0]
            log.warning("W&B: not online: %s; logging offline instead", line)
            wandb.teardown()  # its process would not let go of the run's id
            self._open("offline")
        sent = int(self._last_step.read_text()) if self._last_step.is_file() else -1
        self.step = max(sent, self.run.step - 1)
        """The last step that was sent; -1 before the first."""
        self._settles = SURE_AFTER if _flushed() else math.inf
        self._unsure: deque[tuple[float, int]] = deque()
        """When the last rows were sent, and their steps."""

    def _open(self, mode: str) -> None:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        settings = wandb.Settings(silent=True, init_timeout=30, console="off", **_flushed())
        self.logger = WandbLogger(
            **self._about, offline=mode == "offline", mode=mode, settings=settings
        )
        # Lightning hands it on even where it was not given, and wandb 0.31 warns of it.
        vars(self.logger).get("_wandb_init", {}).pop("anonymous", None)
        self.run = self.logger.experiment

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Sends one row; its step is the next one unless a later one is given. A row whose step was
        sent before is left out: W&B cannot take a row back."""
        step = self.step + 1 if step is None else step
        if step > self.step:
            self._note_what_is_sure()
            self.run.log(values, step=step, commit=True)
            self.step = step
            self._unsure.append((time.monotonic(), step))

    def _note_what_is_sure(self) -> None:
        """Writes down the last step that is on the disk by now: rows after it may be lost where the
        process is killed, and are to be sent again by whoever goes on."""
        sure = None
        while self._unsure and time.monotonic() - self._unsure[0][0] >= self._settles:
            sure = self._unsure.popleft()[1]
        if sure is not None:
            _write(self._last_step, str(sure))

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


def _flushed() -> dict[str, Any]:
    """W&B's setting of how often it writes to its file, if it has one."""
    import wandb

    name = "x_transaction_log_flush_interval"  # wandb 0.31
    return {name: FLUSH_EVERY} if name in wandb.Settings.model_fields else {}


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
