"""What makes torch quicker or more exact: threads, TF32, deterministic algorithms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fedgan.devices import threads
from fedgan.settings import Cluster


@contextmanager
def numerics(settings: Cluster) -> Iterator[None]:
    """Puts torch's switches as `settings` say, and back after the block.

    `deterministic` makes torch refuse what it cannot repeat bit for bit, forbids cuDNN to choose
    its algorithms by speed, and gives cuBLAS the workspace that repeatable sums need.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (
        torch.get_num_threads(),
        *(matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark),
        torch.are_deterministic_algorithms_enabled(),
    )
    if settings.deterministic:  # cuBLAS reads it when CUDA starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    only = settings.deterministic
    _set(threads(settings), settings.tf32, settings.tf32, only or before[3], False, only)
    try:
        yield
    finally:
        _set(*before)


def _set(
    count: int, tf32: bool, cudnn_tf32: bool, repeats: bool, benchmark: bool, only: bool
) -> None:
    torch.set_num_threads(count)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = cudnn_tf32
    torch.backends.cudnn.deterministic = repeats
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(only)
