"""What several measures need: hashes of what they were given, and randomness of their own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn


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


class Given(nn.Module):
    """Stands where torchmetrics expects an encoder: its input is features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def wilson(found: int, seen: int, deviations: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a rate, 95 % by default; it holds for rates of 0 and 1 too.

    >>> low, high = wilson(0, 100)
    >>> low, round(high, 3)
    (0.0, 0.037)
    """
    rate, square = found / seen, deviations**2
    middle = (rate + square / (2 * seen)) / (1 + square / seen)
    spread = math.sqrt(rate * (1 - rate) / seen + square / (4 * seen**2))
    half = deviations * spread / (1 + square / seen)
    return max(0.0, middle - half), min(1.0, middle + half)
