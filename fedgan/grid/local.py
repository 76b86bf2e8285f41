"""The cells of a grid on this machine, several at a time, each a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fedgan.errors import Interrupted, UserError
from fedgan.grid.cells import Cell
from fedgan.grid.folder import ERROR, Folder, last_error, last_lines
from fedgan.grid.machine import Share, arguments, environment
from fedgan.grid.progress import Progress
from fedgan.rundir import TAKEN
from fedgan.runs import SUMMARY

LOOK = 0.2
"""Seconds between two looks at the processes."""
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@dataclass
class Job:
    """A cell that is being trained.

    Attributes:
        cell: which.
        process: its process, in a session of its own, so that a Ctrl-C comes by way of this one.
        log: locked as long as it is open here or there.
        begins: the byte of the log where this start begins.
        share: its slot among those that run at a time.
    """

    cell: Cell
    process: subprocess.Popen[bytes]
    log: BinaryIO
    begins: int
    share: Share


@dataclass(frozen=True)
class Outcome:
    """What came of the cells: names of those that another process has, and the failed with why."""

    held: list[str]
    failed: dict[str, str]


class Runner:
    """Trains what is missing, and keeps going where a cell fails.

    Args:
        folder: the grid's directory, prepared.
        shares: what each of the cells that run at a time may use.
        progress: told of what begins and ends, and asked to show it.
        again: what to type to go on.
    """

    def __init__(
        self, folder: Folder, shares: Sequence[Share], progress: Progress, again: str
    ) -> None:
        self.folder = folder
        self.progress = progress
        self.again = again
        self._free = list(shares)
        self._jobs: list[Job] = []
        self._failed: dict[str, str] = {}

    def run(self, cells: Sequence[Cell]) -> Outcome:
        """Trains these cells. Those that another process has are looked at again at the end.

        Raises `Interrupted` after a stop signal, once all children have saved and ended.
        """
        with _stops() as came:
            try:
                held = self._train(list(cells), came)
                held = self._train(held, came)
            finally:
                self._end_all()
                self._write()
        if came:
            states = list(self.folder.states().values())
            raise Interrupted(
                came[0],
                f"stopped with {states.count('finished')} of {len(states)} cells finished; "
                f"`{self.again}` goes on",
            )
        return Outcome([cell.name for cell in self._unfinished(held)], self._failed)

    def _unfinished(self, cells: Sequence[Cell]) -> list[Cell]:
        return [cell for cell in cells if self.folder.state(cell) != "finished"]

    def _train(self, waiting: list[Cell], came: list[int]) -> list[Cell]:
        """Until all of them have ended, or a stop signal came; those that were held elsewhere."""
        held: list[Cell] = []
        told = 0
        while self._jobs or (waiting and not came):
            while waiting and self._free and not came:
                cell = waiting.pop(0)
                if not self._start(cell):
                    held.append(cell)
            for number in came[told:]:
                told += 1
                self._pass_on(number)
            time.sleep(LOOK)
            over = [job for job in self._jobs if job.process.poll() is not None]
            held += [job.cell for job in over if self._end(job, stopped=bool(came))]
            self.progress.tick()
        return held

    def _start(self, cell: Cell) -> bool:
        """False where another process has it; one that it has finished meanwhile is done."""
        if self.folder.state(cell) == "finished":
            self.progress.ended(cell, "finished")
            return True
        try:
            log = self.folder.claim(cell)
        except UserError as error:
            self._fail(cell, str(error))
            return True
        if log is None:
            self.progress.ended(cell, "held")
            return False
        share = self._free.pop(0)
        command = [sys.executable, "-m", "fedgan", "train", str(self.folder.config(cell))]
        command += ["--resume", f"--run_dir={cell.run_dir}"]
        command += arguments(cell.experiment.cluster, share)
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError):  # a full disk, of which the cell itself will say what it lacks
            os.write(log.fileno(), f"fedgan grid: {when}: {' '.join(command[1:])}\n".encode())
        begins = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(share),
            start_new_session=True,
        )
        self._jobs.append(Job(cell, process, log, begins, share))
        self.progress.started(cell)
        return True

    def _end(self, job: Job, *, stopped: bool) -> bool:
        """Notes how a cell has ended; whether another process was ahead of it."""
        self._jobs.remove(job)
        self._free.append(job.share)
        job.log.close()
        code = job.process.returncode
        if code == 0 and (job.cell.run_dir / SUMMARY).is_file():
            self.progress.ended(job.cell, "finished")
        elif stopped and code in (*(128 + number for number in STOPS), *(-n for n in STOPS)):
            self.progress.ended(job.cell, "stopped")
        else:
            error = _why(self.folder.log(job.cell), job.begins, code)
            if TAKEN in error:
                self.progress.ended(job.cell, "held")
                return True
            self._fail(job.cell, error)
        self._write()
        return False

    def _fail(self, cell: Cell, why: str) -> None:
        self._failed[cell.name] = why
        self.progress.ended(cell, "failed", why)

    def _write(self) -> None:
        """grid.json, a table of contents: nobody's training ends because it is an old one."""
        try:
            self.folder.write()
        except UserError as error:
            self.progress.say(f"note: {error}")

    def _pass_on(self, number: int) -> None:
        """Children know Ctrl-C, TERM and USR1; a terminal that is gone is a TERM to them."""
        passed = signal.SIGTERM if number == signal.SIGHUP else number
        if self._jobs:
            self.progress.say(f"stopping {len(self._jobs)} cells; each saves its finished rounds")
        for job in self._jobs:
            with suppress(ProcessLookupError):
                job.process.send_signal(passed)

    def _end_all(self) -> None:
        """After an error of this process's own: nobody is to be left behind."""
        for job in self._jobs:
            job.process.terminate()
        for job in self._jobs:
            job.process.wait()
            job.log.close()


def _why(log: Path, begins: int, code: int) -> str:
    """Why a cell has failed: its last error line, or its last line of any kind."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = last_lines(log, begins)
    error = last_error(log, begins)
    errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    return error or (errors or lines or [f"ended with code {code} and without a word"])[-1]


@contextmanager
def _stops() -> Iterator[list[int]]:
    """Within, stop signals are noted in the list and end nothing by themselves."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, frame: Any) -> None:
        came.append(number)

    before = {n: signal.getsignal(n) for n in STOPS if signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
