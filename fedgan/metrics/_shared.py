"""What several measures need: hashes of what they were given, and randomness of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


def digest(*parts: Tensor | str | int) -> str:
    """A hash of tensors (bytes, shape, dtype) and words: the key of whatever is made of them.

    >>> digest(torch.zeros(2)) != digest(torch.zeros(2, 1)) != digest("zeros", 2)
    True
    """
    hashed = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            hashed.update(f"{part.dtype}{tuple(part.shape)}|".encode())
            # in blocks, so that a GPU's images are not copied all at once
            for block in torch.split(part, 4096):
                hashed.update(block.contiguous().cpu().numpy().tobytes())
        else:
            hashed.update(f"{part!r}|".encode())
    return hashed.hexdigest()[:20]


def file_digest(path: Path) -> str:
    """A hash of a file's bytes."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()[:20]


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Seeds torch's global CPU generator inside the block and puts it back as it was after.

    For code of others that draws from it (layers' initial weights, torchmetrics' subsets).
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed every CUDA device too, and leave it so
        torch.default_generator.manual_seed(seed)
        yield
