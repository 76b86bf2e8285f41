"""Somebody else's images: what is read, and every fault of it in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fedgan.data.given import load_given, write_labelled
from fedgan.errors import UserError

CLASSES = ("normal", "pneumonia/viral")


@pytest.fixture
def images():
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (12, 1, 8, 8), generator=rng, dtype=torch.uint8)


@pytest.fixture
def labels():
    return torch.arange(12) % 2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["images.npz", "images"])
def test_what_is_written_is_read(tmp_path, images, labels, channels, name):
    images = images.expand(-1, channels, -1, -1).contiguous()
    images[:, 0] //= channels  # so that colour ones are no gray ones
    write_labelled(tmp_path / name, images, labels, CLASSES)
    found, classes = load_given(tmp_path / name, channels, 8, CLASSES)
    order = torch.argsort(labels, stable=True) if name == "images" else torch.arange(12)
    assert torch.equal(found, images[order])
    assert torch.equal(classes, labels[order])
    assert not [path for path in tmp_path.iterdir() if path.name != name]


def test_class_folders_may_be_numbers_and_colour_becomes_gray(tmp_path):
    for label, value in ((0, 50), (1, 200)):
        folder = tmp_path / str(label)
        folder.mkdir()
        for i in range(4):
            Image.new("RGB", (20, 10), (value,) * 3).save(folder / f"{i}.png")
    found, labels = load_given(tmp_path, 1, 8, CLASSES)
    assert (found.shape, labels.tolist()) == ((8, 1, 8, 8), [0] * 4 + [1] * 4)
    assert (found[:4] == 50).all()
    assert (found[4:] == 200).all()


def test_a_folder_of_images_has_no_labels(tmp_path):
    for i in range(8):
        Image.new("L", (8, 8), i).save(tmp_path / f"{i}.png")
    found, labels = load_given(tmp_path, 3, 8, CLASSES)
    assert labels is None
    assert found[:, :, 0, 0].tolist() == [[i] * 3 for i in range(8)]


def test_several_labels_go_through_a_npz_file_only(tmp_path, images):
    labels = torch.eye(2).repeat(6, 1)
    write_labelled(tmp_path / "x.npz", images, labels.to(torch.uint8), CLASSES)
    assert torch.equal(load_given(tmp_path / "x.npz", 1, 8, CLASSES)[1], labels)
    with pytest.raises(UserError, match="several labels"):
        write_labelled(tmp_path / "x", images, labels, CLASSES)


U8 = np.zeros((9, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": U8}, "holds pictures; needed: images"),
        ({"images": U8.astype(float)}, "dtype float64"),
        ({"images": U8[:7]}, "holds 7 images; at least 8"),
        ({"images": np.zeros((9, 10, 10), np.uint8)}, "--data.size=10"),
        ({"images": np.zeros((9, 8, 8, 3), np.uint8)}, "colour images, the real ones are gray"),
        ({"images": U8, "labels": np.arange(8)}, "8 rows for 9 images"),
        ({"images": U8, "labels": np.arange(9)}, "hold 8; classes are 0 to 1"),
        ({"images": U8, "labels": np.zeros((9, 3), int)}, "3 columns, not 2"),
    ],
)
def test_faults_of_a_npz_file(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=words) as caught:
        load_given(tmp_path / "x.npz", 1, 8, CLASSES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04torn", b"\x93NUMPY"])
def test_broken_files(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match="broken"):
        load_given(tmp_path / "x.npz", 1, 8, CLASSES)


def test_faults_of_a_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_given(tmp_path / "none", 1, 8, CLASSES)
    with pytest.raises(UserError, match="holds no image"):
        load_given(tmp_path, 1, 8, CLASSES)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="other is no class of the real images; allowed: normal"):
        load_given(tmp_path, 1, 8, CLASSES)


def test_nothing_is_left_where_a_folder_cannot_be_written(tmp_path, images, labels, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        write_labelled(tmp_path / "made", images, labels, CLASSES)
    assert not list(tmp_path.iterdir())
