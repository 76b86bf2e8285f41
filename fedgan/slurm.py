"""`fedgan slurm`: an experiment as a SLURM job that requeues and resumes itself, and a grid as an
array of them.

What the job does is written in slurm/train.sbatch; here its blanks are filled in and it is handed
to `sbatch`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedgan import config
from fedgan.errors import UserError
from fedgan.rundir import CHECKPOINTS, check_run_dir
from fedgan.settings import Cluster

KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
"""What of SLURM's own variables a new job may inherit, when it is submitted from inside another."""


@dataclass(frozen=True)
class Request:
    """What SLURM is asked for; None leaves it to the partition's default."""

    gpus: int | None = None
    """GPUs of each node, a task for each; or else `procs`."""
    procs: int | None = None
    """CPU tasks of each node."""
    nodes: int = 1
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    signal_before: int = 120
    """Seconds before the time limit at which the job is told to stop."""
    sbatch: str = ""
    """Further options, as they would stand after `#SBATCH`."""


@dataclass(frozen=True)
class Job:
    """A script that is ready for sbatch, and the run it makes."""

    script: str
    run_dir: Path


def prepare(path: str, overrides: Sequence[str], request: Request) -> Job:
    """The job that trains the config at `path`. Writes nothing and needs no SLURM.

    Raises `UserError` for a bad config and for what cannot stand in a job script.
    """
    _check(request)
    experiment = config.read(path, overrides)
    _check_machine(experiment.cluster, request)
    run_dir = Path(os.path.abspath(str(experiment.run_dir)))
    arguments = [
        os.path.abspath(config.locate(Path(path))),
        f"--run_dir={run_dir}",
        f"--cluster.accelerator={'cuda' if request.gpus else 'cpu'}",
        *(override for override in overrides if not override.startswith("--run_dir=")),
    ]
    return Job(_script(request, run_dir, run_dir / "slurm-%j.out", arguments), run_dir)


def prepare_array(
    folder: Path, names: Sequence[str], clusters: Sequence[Cluster], request: Request, at_once: int
) -> str:
    """The script of a job array that trains cells of a grid, a task a cell, so many `at_once`.

    Cells are written into the script and not into a file beside it, since SLURM keeps the script as
    it was submitted, and a task may be requeued long after another array has been. Raises
    `UserError` as `prepare` does.
    """
    _check(request)
    for cluster in clusters:
        _check_machine(cluster, request)
    folder = Path(os.path.abspath(folder))
    arguments = [f"--cluster.accelerator={'cuda' if request.gpus else 'cpu'}"]
    output = folder / "logs" / "slurm-%A.out"
    array = f"--array=0-{len(names) - 1}%{at_once}"
    return _script(request, folder, output, arguments, names, array)


def _script(
    request: Request,
    folder: Path,
    output: Path,
    arguments: Sequence[str],
    cells: Sequence[str] = (),
    *more: str,
) -> str:
    """The template, filled in; `folder` is the run directory, or, where there are cells, the
    grid's."""
    place = str(output.parent).replace("%", "%%")
    values = {
        "mkdir": f"mkdir -p {_word(output.parent)} && sbatch SCRIPT",
        "job_name": _job_name(folder),
        "output": _directive(f"{place}/{output.name}"),
        "options": "\n".join(f"#SBATCH {option}" for option in [*more, *_options(request)]),
        "signal_before": str(request.signal_before),
        "python": _word(os.path.abspath(sys.executable)),
        "folder": _word(Path.cwd()),
        "run_dir": "" if cells else _word(folder),
        "arguments": "\n  ".join(_word(argument) for argument in arguments),
        "grid": _word(folder) if cells else "",
        "cells": "\n  ".join(map(_word, cells)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda blank: values[blank[1]], _template())


def submit(job: Job) -> str:
    """The id of the submitted job; its output goes to slurm-ID.out in the run directory.

    Raises `UserError` where there is no SLURM, or where it refuses the job.
    """
    sbatch = find_sbatch()
    # As the job itself would find it, which goes on with what is there.
    if not any((job.run_dir / CHECKPOINTS).glob("round_*")):
        check_run_dir(job.run_dir, overwrite=True)
    is_new = not job.run_dir.exists()
    try:
        job.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir: cannot write {job.run_dir}: {error.strerror}") from None
    try:
        return hand_in(sbatch, job.script)
    except UserError:
        if is_new:
            job.run_dir.rmdir()
        raise


def find_sbatch() -> str:
    """Where the program is. Raises `UserError` where there is no SLURM."""
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise UserError(
            "no SLURM on this machine (no sbatch on the PATH); `make train` trains here, "
            "--dry-run prints the job script"
        )
    return sbatch


def hand_in(sbatch: str, script: str) -> str:
    """The id of the job that `script` has become. Raises `UserError` where SLURM refuses it."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name in KEPT
    }
    done = subprocess.run(
        [sbatch, "--parsable"], input=script, env=inherited, capture_output=True, text=True
    )
    if done.returncode:
        lines = [line.removeprefix("sbatch: error: ") for line in done.stderr.splitlines()]
        raise UserError(f"sbatch: {'; '.join(filter(None, lines)) or 'refused the job'}")
    return done.stdout.strip().split(";")[0]  # "id" or "id;cluster"


def _check(request: Request) -> None:
    if (request.gpus is None) == (request.procs is None):
        raise UserError("slurm: name --gpus=N or --procs=N, the tasks of each node")
    for name in ("gpus", "procs", "nodes", "cpus_per_task", "signal_before"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')}: {value} is less than 1")
    if "\n" in request.sbatch:
        raise UserError("--sbatch: options stand on one line")


def _check_machine(cluster: Cluster, request: Request) -> None:
    """The tasks would refuse what contradicts the step that they are in."""
    tasks = request.gpus or request.procs
    for key, wanted, asked, option in (
        ("devices", cluster.devices, tasks, "--gpus" if request.gpus else "--procs"),
        ("nodes", cluster.nodes, request.nodes, "--nodes"),
    ):
        if wanted is not None and wanted != asked:
            raise UserError(
                f"cluster.{key}: {wanted}, but {option} is {asked}; leave cluster.{key} out "
                f"(--cluster.{key}=null), it is detected"
            )


def _options(request: Request) -> list[str]:
    wanted = {
        "nodes": request.nodes,
        "ntasks-per-node": request.gpus or request.procs,
        "gpus-per-node": request.gpus,
        "cpus-per-task": request.cpus_per_task,
        "mem": request.mem,
        "time": request.time,
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
    }
    options = [f"--{key}={_directive(str(it))}" for key, it in wanted.items() if it is not None]
    return [*options, request.sbatch] if request.sbatch else options


def _template() -> str:
    package = Path(__file__).parent
    for path in (package / "train.sbatch", package.parent / "slurm" / "train.sbatch"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise UserError("slurm: train.sbatch did not come with this installation of fedgan")


def _job_name(run_dir: Path) -> str:
    """The run's name, and a digest of where it is: jobs of one run directory must have one name,
    and no others may."""
    place = hashlib.sha256(str(run_dir).encode()).hexdigest()[:6]
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', run_dir.name)}@{place}"


def _word(text: Path | str) -> str:
    """Quoted for bash."""
    return shlex.quote(str(text))


def _directive(text: str) -> str:
    """Quoted for a #SBATCH line, which knows double quotes and backslashes, but no new lines."""
    if "\n" in text:
        raise UserError(f"{text!r}: a new line cannot stand in an option of SLURM")
    if re.fullmatch(r"[\w./:,%@+=-]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
