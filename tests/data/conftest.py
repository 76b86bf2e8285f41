"""What the data tests share: a cache of their own and small data sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgan.data import Dataset
from fedgan.data.brain_mri import BrainMRI

Arrays = dict[str, Any]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDGAN_CACHE", str(cache))


@pytest.fixture(scope="session")
def brains(cache: Path) -> Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGAN_CACHE", str(cache))
        return BrainMRI(train=80, val=20, test=20).load(None, 32, seed=1)


@pytest.fixture
def arrays() -> Arrays:
    """A sound data set in MedMNIST layout: 3 classes, 8 x 8 gray."""
    rng = np.random.default_rng(0)
    layout: Arrays = {}
    for split, n in (("train", 12), ("val", 6), ("test", 3)):
        layout[f"{split}_images"] = rng.integers(0, 256, (n, 8, 8), dtype=np.uint8)
        layout[f"{split}_labels"] = (np.arange(n) % 3).astype(np.uint8)[:, None]
    return layout


@pytest.fixture
def write_npz(tmp_path: Path) -> Callable[..., str]:
    def write(arrays: Arrays, name: str = "mine.npz") -> str:
        np.savez(tmp_path / name, **arrays)
        return str(tmp_path / name)

    return write
