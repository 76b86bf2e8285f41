"""Which device: decided, or refused, before Lightning is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from fedgan.errors import UserError
from fedgan.settings import Cluster


def resolve_accelerator(settings: Cluster) -> Literal["cpu", "cuda"]:
    """`cpu` or `cuda`. Raises `UserError` where more CUDA devices are asked for than there are."""
    if settings.accelerator == "cpu":
        return "cpu"
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.accelerator == "auto" and there == 0:
        return "cpu"
    if settings.devices > there:
        instead = f"make train GPUS={there}" if there else "make train, or make train PROCS=2"
        raise UserError(
            f"cluster.devices: {settings.devices} CUDA device(s) asked for, this machine has "
            f"{there}; type {instead} (--cluster.accelerator=cpu trains on the CPU)"
        )
    return "cuda"


def is_main_process() -> bool:
    """Whether this process is, or will become, rank 0; known before Fabric is launched."""
    for variable in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(variable):
            return int(os.environ[variable]) == 0
    return True


def launched_outside() -> bool:
    """Whether torchrun, srun or Fabric's own launcher has started this process as one of many."""
    return any(os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def forks(settings: Cluster) -> bool:
    """Whether the ranks are forked from this process: several on one CPU machine."""
    several = settings.devices > 1 and settings.nodes == 1 and not launched_outside()
    return several and resolve_accelerator(settings) == "cpu"


def threads(settings: Cluster) -> int:
    """CPU threads of each rank: as set, or as OMP_NUM_THREADS says, or an even share of the cores.

    >>> threads(Cluster(threads=3))
    3
    """
    if settings.threads is not None:
        return settings.threads
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said) > 0:
        return int(said)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // settings.devices)


@contextmanager
def one_thread_before_a_fork(settings: Cluster) -> Iterator[None]:
    """Keeps torch to one thread in a process that is going to fork: OpenMP's team of threads does
    not survive a fork, and a rank that wants to use it waits for ever."""
    if not forks(settings):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
