"""Which device: decided, or refused, before Lightning is imported."""

from __future__ import annotations

import os

from fedgan.errors import UserError
from fedgan.settings import Cluster


def resolve_accelerator(settings: Cluster) -> str:
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
