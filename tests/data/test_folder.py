"""Class folders: sizes, splits, cache, and what a broken one says."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedgan.data import folder
from fedgan.data.folder import Folder, luminance, read_image
from fedgan.errors import UserError


def paint(file: Path, size=(20, 20), colour=128, mode="L") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(file)


@pytest.fixture
def root(tmp_path) -> Path:
    """Two classes, 20 images each, gray value 10 * class + number."""
    for k, name in enumerate(("cat", "dog")):
        for i in range(20):
            paint(tmp_path / "pets" / name / f"{i:02}.png", (30 + i, 20), 100 * k + i)
    return tmp_path / "pets"


def test_plain_class_folders_are_split_by_seed(root):
    data = Folder().load(str(root), 16, 1)
    assert data.classes == ("cat", "dog")
    assert data.name == "pets"
    assert data.train.images.shape == (32, 1, 16, 16)
    assert [len(data.train), len(data.val), len(data.test)] == [32, 4, 4]
    values = []
    for part in (data.train, data.val, data.test):
        assert part.labels.bincount().tolist() == [len(part) // 2] * 2
        assert torch.equal(part.images[:, 0, 8, 8] // 100, part.labels)
        values += part.images[:, 0, 8, 8].tolist()
    assert sorted(values) == [*range(20), *range(100, 120)]  # nothing lost or doubled
    same, other = (Folder().load(str(root), 16, seed) for seed in (1, 2))
    assert torch.equal(data.train.images, same.train.images)
    assert not torch.equal(data.train.images, other.train.images)


def test_divided_folders_keep_their_splits(tmp_path):
    for split, value in (("train", 10), ("val", 20), ("test", 30)):
        paint(tmp_path / split / "a" / "x.png", colour=value)
        paint(tmp_path / split / "b" / "x.jpg", colour=value)
    (tmp_path / "train" / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "a" / "._x.png").write_text("litter")
    data = Folder(flip=True).load(str(tmp_path), None, 1)
    assert data.size == 64
    assert data.flip
    for part, value in ((data.train, 10), (data.val, 20), (data.test, 30)):
        assert part.labels.tolist() == [0, 1]
        assert (part.images.int() - value).abs().max() <= 1


def test_channels(root):
    assert Folder(channels=3).load(str(root), 8, 1).channels == 3
    paint(root / "dog" / "colour.bmp", colour=(200, 10, 10), mode="RGB")
    assert Folder().load(str(root), 8, 1).channels == 3
    assert Folder(channels=1).load(str(root), 8, 1).channels == 1


def test_luminance_is_pillows():
    colour = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(colour).convert("L"))
    assert np.array_equal(luminance(colour)[..., 0], expected)
    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    assert np.array_equal(luminance(gray)[:, 0], np.arange(256))


def test_fit_and_antialias(tmp_path):
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png", 10, "crop").min() > 230
    stretched = read_image(tmp_path / "wide.png", 12, "stretch")
    assert stretched[:, 0].max() == 0
    assert stretched[:, 6].min() == 255
    checker = (np.indices((64, 64)).sum(0) % 2 * 200).astype(np.uint8)
    Image.fromarray(checker).save(tmp_path / "checker.png")
    assert np.abs(read_image(tmp_path / "checker.png", 8, "crop").astype(int) - 100).max() < 8


def test_transparency_is_black(tmp_path):
    paint(tmp_path / "clear.png", colour=(255, 255, 255, 0), mode="RGBA")
    assert read_image(tmp_path / "clear.png", 8, "crop").max() == 0


def test_the_cache_is_used_until_a_file_changes(root, monkeypatch):
    first = Folder().load(str(root), 12, 1)
    reads: list[Path] = []

    def spy(file, size, fit):
        reads.append(file)
        return read_image(file, size, fit)

    monkeypatch.setattr(folder, "read_image", spy)
    assert torch.equal(Folder().load(str(root), 12, 1).train.images, first.train.images)
    assert reads == []
    os.utime(root / "cat" / "00.png", ns=(1, 1))
    Folder().load(str(root), 12, 1)
    assert len(reads) == 40
    Folder(fit="stretch").load(str(root), 12, 1)
    assert len(reads) == 80


def test_litter_in_the_cache_is_made_anew(root, cache):
    first = Folder().load(str(root), 14, 1)
    (kept,) = (cache / "folder").glob("14px-*.npz")
    kept.write_bytes(kept.read_bytes()[:500])
    assert torch.equal(Folder().load(str(root), 14, 1).train.images, first.train.images)


def empty(root):
    for file in (root / "cat").iterdir():
        file.unlink()


def one_class(root):
    empty(root)
    (root / "cat").rmdir()


def two_left(root):
    for file in sorted((root / "cat").iterdir())[2:]:
        file.unlink()


def truncated(root):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(root / "dog" / "03.png")
    os.truncate(root / "dog" / "03.png", 2000)


def sixteen_bits(root):
    Image.fromarray(np.full((20, 20), 4000, np.uint16)).save(root / "dog" / "deep.png")


def pages(root):
    page = Image.new("L", (20, 20))
    page.save(root / "dog" / "stack.tif", save_all=True, append_images=[page.copy()])


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (empty, r"cat: holds no image; allowed: \.png"),
        (one_class, r"pets: holds only class dog; allowed: 2 or more folders"),
        (two_left, r"cat: 2 image\(s\); allowed: at least 3"),
        (truncated, r"dog/03\.png: is not a readable image \(.*\); mend or remove"),
        (
            lambda r: (r / "dog" / "x.jpg").write_text("hello"),
            r"dog/x\.jpg: is not a readable image",
        ),
        (sixteen_bits, r"dog/deep\.png: is of Pillow's mode I;16; allowed: .*8 bits"),
        (pages, r"dog/stack\.tif: holds several pages"),
        (
            lambda r: (r / "train").mkdir(),
            r"holds cat, dog, train; allowed: train, val and test tog",
        ),
    ],
)
def test_faults(root, spoil, line):
    spoil(root)
    with pytest.raises(UserError, match=line) as caught:
        Folder().load(str(root), 16, 1)
    assert "\n" not in str(caught.value)


def test_a_class_that_train_lacks(tmp_path):
    for name in ("train/a", "train/b", "val/a", "test/c"):
        paint(tmp_path / name / "x.png")
    with pytest.raises(UserError, match=r"test/c: a class that train does not have; allowed: a, b"):
        Folder().load(str(tmp_path), 16, 1)


def test_paths(tmp_path):
    with pytest.raises(UserError, match=r"data\.path: missing"):
        Folder().load(None, None, 1)
    with pytest.raises(UserError, match=r"data\.path: .*no does not exist"):
        Folder().load(str(tmp_path / "no"), None, 1)
    with pytest.raises(UserError, match="holds no class folder"):
        Folder().load(str(tmp_path), None, 1)
    with pytest.raises(UserError, match=r"data\.size: 0; allowed: 1 or more"):
        Folder().load(str(tmp_path), 0, 1)
