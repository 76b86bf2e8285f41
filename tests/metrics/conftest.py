"""What the tests of the measures share: a cache of their own, real images, plain ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGAN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def real() -> Callable[[str, str], tuple[Tensor, Tensor]]:
    """Images uint8 [N, C, H, W] and labels int64 [N] of a real data set, or a skipped test."""

    def load(name: str, split: str = "train") -> tuple[Tensor, Tensor]:
        path = REAL / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no {path}")
        with np.load(path) as file:
            images, labels = file[f"{split}_images"], file[f"{split}_labels"]
        images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2).copy()
        return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)).view(-1)

    return load


@pytest.fixture(scope="session")
def smooth() -> Callable[..., Tensor]:
    """Smooth images uint8 [n, C, size, size]: a few random waves, as anatomy is mostly slow."""

    def draw(n: int, channels: int = 1, size: int = 32, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(n, channels, 5, 5, generator=generator) * 255
        up = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
        return up.clamp(0, 255).to(torch.uint8)

    return draw
