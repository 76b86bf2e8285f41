"""What this machine has for several cells at a time: threads and CUDA devices shared out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from fedgan.devices import cuda_devices
from fedgan.errors import UserError
from fedgan.grid.cells import Cell
from fedgan.settings import Cluster


@dataclass(frozen=True)
class Share:
    """What one of the cells that run at a time may use.

    Attributes:
        threads: CPU threads of each of its processes.
        devices: as CUDA_VISIBLE_DEVICES is to name them; None leaves that as it is.
    """

    threads: int
    devices: str | None = None


def share_out(cells: Sequence[Cell], jobs: int | None) -> list[Share]:
    """What each of `jobs` cells at a time may use, as many as there are shares.

    Cores are shared evenly, at least one thread each (OMP_NUM_THREADS is an upper bound). CUDA
    devices are taken in turn, so that there may be more jobs than devices. None stands for a job a
    device, or for one where there is none. Raises `UserError` for fewer than 1.

    >>> len(share_out([], 3))
    3
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: {jobs} is less than 1")
    clusters = [cell.experiment.cluster for cell in cells]
    per_cell = max((cluster.devices or 1 for cluster in clusters), default=1)
    wants_cuda = any(cluster.accelerator != "cpu" for cluster in clusters)
    names = _cuda_names() if wants_cuda else []
    groups = [names[i : i + per_cell] for i in range(0, len(names) - per_cell + 1, per_cell)]
    jobs = jobs or max(1, len(groups))
    threads = threads_of_each(jobs * per_cell)
    if not groups:
        return [Share(threads)] * jobs
    return [Share(threads, ",".join(groups[job % len(groups)])) for job in range(jobs)]


def threads_of_each(processes: int) -> int:
    """CPU threads of each of so many processes that share this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fair = max(1, (cores or 1) // processes)
    said = os.environ.get("OMP_NUM_THREADS", "")
    return min(fair, int(said)) if said.isdigit() and int(said) > 0 else fair


def arguments(cluster: Cluster, share: Share) -> list[str]:
    """What a cell's command line says of its share, where its config says nothing."""
    return [] if cluster.threads is not None else [f"--cluster.threads={share.threads}"]


def environment(share: Share) -> dict[str, str]:
    """The environment of a cell's process. SLURM's and torchrun's words about this process are
    not for those that it starts."""
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    found = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") and name not in ours
    }
    found |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(share.threads)}
    if share.devices is not None:
        found["CUDA_VISIBLE_DEVICES"] = share.devices
    return found


def _cuda_names() -> list[str]:
    there = cuda_devices()
    said = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return said[:there] if len(said) >= there and any(said) else [str(i) for i in range(there)]
