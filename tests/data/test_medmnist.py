"""MedMNIST by flag: local files first, one line where there is no network."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedgan.data import find_source, medmnist
from fedgan.data.brain_mri import BrainMRI
from fedgan.data.medmnist import FLIP, MedMNIST, flags
from fedgan.errors import UserError
from fedgan.settings import Data

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "pneumoniamnist.npz"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """The package's own folder, empty, with addresses that lead to local files."""
    home = tmp_path / "home"
    home.mkdir()
    info = {flag: dict(entry) for flag, entry in medmnist.package().INFO.items()}
    served = tmp_path / "served.npz"
    info["pneumoniamnist"]["url"] = served.as_uri()
    package = SimpleNamespace(INFO=info, DEFAULT_ROOT=str(home))
    monkeypatch.setattr(medmnist, "package", lambda: package)
    return home


def layout(size: int = 28, classes: int = 2, channels: int | None = None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (6, size, size) if channels is None else (6, size, size, channels)
    made = {}
    for split in ("train", "val", "test"):
        made[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        made[f"{split}_labels"] = (np.arange(6) % classes).astype(np.uint8)[:, None]
    return made


def test_every_2d_flag_has_its_flip():
    assert set(FLIP) == set(flags())
    assert len(FLIP) == 12
    assert not FLIP["pneumoniamnist"][0]
    assert FLIP["bloodmnist"][0]


def test_find_source_by_name_flag_and_class_path():
    assert isinstance(find_source(Data()), BrainMRI)
    choice = Data(init_args={"train": 8})
    assert find_source(choice).counts["train"] == 8
    assert choice.init_args["val"] == 500  # the defaults in force are written back
    blood = find_source(Data(name="bloodmnist"))
    assert (blood.name, blood.flag) == ("medmnist", "bloodmnist")
    assert find_source(Data(name="medmnist", init_args={"flag": "octmnist"})).flag == "octmnist"
    by_path = Data(class_path="fedgan.data.folder.Folder", init_args={"fit": "stretch"})
    assert find_source(by_path).fit == "stretch"


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (Data(name="pneumonamnist"), r"data\.name: 'pneumonamnist' .*MedMNIST flag; did you mean "),
        (Data(name="brainmri"), r"did you mean 'brain-mri'\?.*known: .*folder.*npz"),
        (Data(name="organmnist3d"), r"data\.name: organmnist3d holds 3D volumes; allowed: .*blood"),
        (Data(name="octmnist", init_args={"x": 1}), r"data\.init_args: x; octmnist takes none"),
        (Data(name="medmnist", init_args={"flag": "octmist"}), r"flag: unknown .* mean 'octmnist'"),
        (Data(name="npz", init_args={"resise": True}), r"init_args\.resise: .* mean 'resize'"),
        (Data(init_args={"train": 3}), r"data\.init_args\.train: 3; allowed: at least 4"),
        (Data(name=None), r"data\.name: unknown 'None'"),
    ],
)
def test_unknown_names(choice, line):
    with pytest.raises(UserError, match=line) as caught:
        find_source(choice)
    assert "\n" not in str(caught.value)


def test_a_local_file_comes_first_whatever_its_checksum(root, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    np.savez(mine / "pneumoniamnist.npz", **layout())
    np.savez(root / "pneumoniamnist_64.npz", **layout(64))
    source = MedMNIST("pneumoniamnist")
    assert source.fetch(str(mine), 28) == mine / "pneumoniamnist.npz"
    assert source.fetch(str(mine / "pneumoniamnist.npz"), 28) == mine / "pneumoniamnist.npz"
    data = source.load(str(mine), None, 1)
    assert (data.name, data.size, data.classes) == ("pneumoniamnist", 28, ("normal", "pneumonia"))
    assert not data.flip
    assert source.load(str(mine), 64, 1).size == 64  # from the package's own folder


def test_download_with_checksum(root, tmp_path):
    served = tmp_path / "served.npz"
    np.savez(served, **layout())
    source = MedMNIST("pneumoniamnist")
    with pytest.raises(UserError, match=r"checksum .*, expected .*; try again, or put pneumonia"):
        source.load(None, None, 1)
    assert list(root.iterdir()) == []  # nothing half-made is left
    source.info["MD5"] = hashlib.md5(served.read_bytes()).hexdigest()
    assert len(source.load(None, None, 1).train) == 6
    served.unlink()
    assert len(source.load(None, None, 1).train) == 6  # the second time from the disk


def test_no_network_is_one_line(root):
    with pytest.raises(UserError, match=r"cannot fetch file:.*put pneumoniamnist\.npz in .*home"):
        MedMNIST("pneumoniamnist").load(None, None, 1)
    assert list(root.iterdir()) == []


def test_tasks(root):
    chest = layout()
    for split in ("train", "val", "test"):
        chest[f"{split}_labels"] = np.eye(6, 14, dtype=np.uint8)
    np.savez(root / "chestmnist.npz", **chest)
    data = MedMNIST("chestmnist").load(None, None, 1)
    assert data.multi_label
    assert data.train.labels.dtype == torch.float32
    assert data.train.labels.shape == (6, 14)

    np.savez(root / "retinamnist.npz", **layout(classes=5, channels=3))
    data = MedMNIST("retinamnist").load(None, None, 1)
    assert data.train.labels.dtype == torch.int64
    assert data.train.images.shape == (6, 3, 28, 28)
    assert len(data.classes) == 5


@pytest.mark.parametrize(
    ("arrays", "size", "line"),
    [
        (layout(), 32, r"data\.size: 32; allowed for pneumoniamnist: 28, 64, 128, 224"),
        (layout(size=32), None, r"images of 32 pixels; data\.size is 28"),
        (layout(classes=3), None, r"train_labels holds 2; allowed: 0 to 1"),
    ],
)
def test_a_file_that_is_not_this_data_set(root, arrays, size, line):
    np.savez(root / "pneumoniamnist.npz", **arrays)
    with pytest.raises(UserError, match=line):
        MedMNIST("pneumoniamnist").load(None, size, 1)


def test_multi_label_columns_must_fit(root):
    np.savez(root / "chestmnist.npz", **layout())
    with pytest.raises(UserError, match=r"train_labels has shape 6; allowed: N x 14"):
        MedMNIST("chestmnist").load(None, None, 1)


def test_a_path_that_is_not_there(root):
    with pytest.raises(UserError, match=r"data\.path: .*nowhere does not exist; allowed: a folder"):
        MedMNIST("pneumoniamnist").load("/nowhere", None, 1)


def test_the_real_file():
    if not REAL.exists():
        pytest.skip("no real data here")
    data = find_source(Data(name="pneumoniamnist")).load(str(REAL.parent), 28, 1)
    assert data.train.images.shape == (4708, 1, 28, 28)
