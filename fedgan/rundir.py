"""The run directory: whether it may be made, and making it whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedgan import config
from fedgan.errors import UserError
from fedgan.settings import Experiment

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
SLURM_OUTPUT = "slurm-*.out"
"""Written by SLURM into the run directory from before the job begins until after it ends."""
HALF_WRITTEN = re.compile(r"\..+\.(\w{8}|old)")
"""Names of files and folders that are to be renamed when they are whole."""
MAY_CHANGE = ("cluster", "evaluate", "tracking", "checkpoint", "run_dir", "python_path")
"""Groups of the config that do not make a run another one."""


UNLESS_BEGUN = "unless begun"
"""A run directory may be replaced as long as no other process has put a checkpoint there."""
TAKEN = "another process is writing to"
"""What every error says that is about a run directory which another process has."""


def check_run_dir(run_dir: Path, *, overwrite: bool) -> None:
    """Raises `UserError` where a run must not, or cannot, be written to `run_dir`.

    `--overwrite` replaces runs of fedgan and empty folders, never anything else.
    """
    try:
        _check(run_dir, overwrite)
    except OSError as error:
        raise UserError(f"run_dir: cannot write {run_dir}: {error.strerror}") from None


def _check(run_dir: Path, overwrite: bool) -> None:
    here, cwd = run_dir.resolve(), Path.cwd().resolve()
    home = Path(os.path.expanduser("~")).resolve()
    if here in (cwd, home) or here in cwd.parents:
        raise UserError(f"run_dir: {run_dir} holds more than a run; name a folder of its own")
    if run_dir.is_symlink() or (run_dir.exists() and not _is_only_output(run_dir)):
        if not overwrite:
            raise UserError(
                f"run_dir: {run_dir} exists; --overwrite replaces it, "
                f"`fedgan resume {run_dir}` goes on with it, --run_dir=DIR keeps both"
            )
        if run_dir.is_symlink() or not run_dir.is_dir():
            raise UserError(f"run_dir: {run_dir} is no folder; --overwrite leaves it alone")
        is_run = (run_dir / CONFIG).is_file() and (run_dir / CHECKPOINTS).is_dir()
        if any(run_dir.iterdir()) and not is_run:
            raise UserError(
                f"run_dir: {run_dir} is no run of fedgan (it has no {CONFIG} and {CHECKPOINTS}/); "
                "--overwrite leaves it alone"
            )
    above = here.parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"run_dir: cannot write {run_dir}: {above} cannot be written")


@contextmanager
def held(run_dir: Path) -> Iterator[None]:
    """Within, no other process of fedgan writes to the run directory; `UserError` where one does.

    The lock is a file beside it, since the run directory itself may be replaced. It goes with the
    process however that ends. Where the file system knows no locks, nothing is held.
    """
    path = run_dir.with_name(f".{run_dir.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise UserError(f"run_dir: cannot write {run_dir}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"run_dir: {TAKEN} {run_dir}") from None
        except OSError:
            pass
        yield
        path.unlink(missing_ok=True)


def make_run_dir(run_dir: Path, settings: Experiment, needed: int, *, overwrite: bool) -> None:
    """Makes the run directory with config.yaml in it, or nothing; an older one goes only now.

    `needed` is the room for checkpoints in bytes. Raises `UserError` where the disk is read-only,
    or too full for them, and as `check_run_dir` does: another run may have come in between.
    """
    check_run_dir(run_dir, overwrite=overwrite)
    fresh, old = (run_dir.with_name(f".{run_dir.name}.{end}") for end in ("new", "old"))
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)  # of a process killed between the two renames
        (fresh / CHECKPOINTS).mkdir(parents=True)
        if shutil.disk_usage(fresh).free < needed:
            raise OSError(errno.ENOSPC, "the disk has no room for the checkpoints")
        (fresh / CONFIG).write_text(config.dump(settings), encoding="utf-8")
        for output in run_dir.glob(SLURM_OUTPUT):  # stays open while it is moved
            output.replace(fresh / output.name)
        if run_dir.exists():
            run_dir.replace(old)
        fresh.replace(run_dir)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        for output in fresh.glob(SLURM_OUTPUT):
            output.replace((old if old.exists() else run_dir) / output.name)
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not run_dir.exists():
            old.replace(run_dir)
        raise UserError(f"run_dir: cannot write {run_dir}: {error.strerror}") from None


def _is_only_output(run_dir: Path) -> bool:
    """Whether the run directory holds nothing but the output of the job that is to fill it."""
    if not run_dir.is_dir():
        return False
    return {*run_dir.iterdir()} == {*run_dir.glob(SLURM_OUTPUT)} != set()


def check_same_run(run_dir: Path, settings: Experiment) -> None:
    """Raises `UserError` where a run directory holds a run of other settings than these, which
    are to have every default filled in."""
    found = list(differences(read_settings(run_dir, []), settings))
    if found:
        group = re.split(r"[.:]", found[0])[0]
        own = ", ".join(line for line in found if re.match(rf"{group}[.:]", line))
        raise UserError(
            f"run_dir: {run_dir} holds a run with another {group} ({own}); name another run_dir, "
            "or leave --resume out and add --overwrite"
        )


def differences(there: Any, here: Any, prefix: str = "") -> Iterator[str]:
    """What makes two experiments different ones, a line a key; see `MAY_CHANGE`.

    >>> from fedgan.settings import Federation
    >>> list(differences(Experiment(), Experiment(federation=Federation(rounds=3))))
    ['federation.rounds: 20 there, 3 here']
    """
    for key, value in vars(here).items():
        if prefix or key not in MAY_CHANGE:
            older = vars(there)[key]
            if hasattr(value, "__dict__"):
                yield from differences(older, value, f"{prefix}{key}.")
            elif older != value:
                yield f"{prefix}{key}: {older} there, {value} here"


def is_held(run_dir: Path) -> bool:
    """Whether a process of fedgan is writing to the run directory, as `held` has it."""
    return is_locked(run_dir.with_name(f".{run_dir.name}.lock"))


def is_locked(path: Path) -> bool:
    """Whether another process has locked a file; where there is none, or the file system knows no
    locks, nobody has. It is opened to be read only: the folder may be somebody else's."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def tidy(run_dir: Path) -> None:
    """Removes what a process left half written when it was killed."""
    for folder in (run_dir, run_dir / CHECKPOINTS, run_dir / "samples"):
        for left in folder.glob(".*"):
            if HALF_WRITTEN.fullmatch(left.name):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def read_settings(run_dir: Path, overrides: list[str]) -> Experiment:
    """The settings of a run, with overrides of what may change after its start.

    Raises `UserError` where there is no run, or for a key that would make it another run.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        below = sorted(run_dir.glob(f"*/{CONFIG}"))
        hint = f"; there are runs in it, as {below[0].parent}" if below else ""
        raise UserError(f"{run_dir}: no run here (it has no {CONFIG}){hint}")
    for override in overrides:
        if not override.startswith(("--cluster.", "--evaluate.", "--tracking.")):
            raise UserError(
                f"{override}: of a run that has begun, only --cluster.*, --evaluate.* and "
                "--tracking.* can be changed"
            )
    settings = config.read(path, overrides)
    settings.run_dir = str(run_dir)  # it may have been moved since
    return settings
