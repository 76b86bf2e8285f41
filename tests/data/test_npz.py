"""A sound file makes a round trip; every fault is told in one line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fedgan.data import find_source
from fedgan.data.npz import NPZ, resized
from fedgan.errors import UserError
from fedgan.settings import Data

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def test_round_trip(arrays, write_npz):
    data = NPZ(class_names=["a", "b", "c"], flip=True).load(write_npz(arrays), None, 1)
    assert (data.name, data.size, data.channels, data.flip) == ("mine", 8, 1, True)
    assert data.classes == ("a", "b", "c")
    for split in ("train", "val", "test"):
        part = getattr(data, split)
        assert part.images.dtype == torch.uint8
        assert part.labels.dtype == torch.int64
        assert np.array_equal(part.images[:, 0].numpy(), arrays[f"{split}_images"])
        assert np.array_equal(part.labels.numpy(), arrays[f"{split}_labels"][:, 0])


def test_colour_comes_first_and_flat_labels_will_do(arrays, write_npz):
    for split, n in (("train", 12), ("val", 6), ("test", 3)):
        arrays[f"{split}_images"] = np.arange(n * 192, dtype=np.uint8).reshape(n, 8, 8, 3)
        arrays[f"{split}_labels"] = arrays[f"{split}_labels"][:, 0].astype(np.int32)
    data = NPZ().load(write_npz(arrays), 8, 1)
    assert data.train.images.shape == (12, 3, 8, 8)
    assert data.train.images.is_contiguous()
    assert data.train.images[5, 2, 3, 4] == arrays["train_images"][5, 3, 4, 2]
    assert data.classes == ("class 0", "class 1", "class 2")


def test_multi_label(arrays, write_npz):
    for split in ("train", "val", "test"):
        n = len(arrays[f"{split}_images"])
        arrays[f"{split}_labels"] = np.arange(n)[:, None] >> np.arange(3) & 1
    data = NPZ().load(write_npz(arrays), None, 1)
    assert data.multi_label
    assert data.train.labels.dtype == torch.float32
    assert data.train.labels[5].tolist() == [1.0, 0.0, 1.0]


def test_another_size_only_where_told(arrays, write_npz):
    path = write_npz(arrays)
    with pytest.raises(UserError, match=r"data\.size: 16, .* 8 pixels; allowed: 8, or .*resize"):
        NPZ().load(path, 16, 1)
    with pytest.raises(UserError, match=r"data\.size: 0; allowed"):
        NPZ(resize=True).load(path, 0, 1)
    assert NPZ(resize=True).load(path, 16, 1).train.images.shape == (12, 1, 16, 16)
    stripes = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 200
    assert resized(stripes, 8)[..., 1:-1].float().sub(100).abs().max() <= 2  # no moire


def drop(key):
    return lambda arrays: arrays.pop(key)


def put(key, change):
    return lambda arrays: arrays.update({key: change(arrays[key])})


FAULTS = [
    (
        drop("val_labels"),
        r"val_labels is missing, the file holds test_images.*needed: train_images",
    ),
    (put("train_images", lambda x: x / 255), r"train_images has dtype float64; allowed: uint8"),
    (put("train_images", lambda x: x[0]), r"train_images has shape 8 x 8; allowed"),
    (put("val_images", lambda x: x[:, :4]), r"val_images has images of 4 x 8 pixels; .*square"),
    (
        put("test_images", lambda x: x[..., None].repeat(2, 3)),
        r"test_images has 2 channels; .*1 or 3",
    ),
    (
        put("test_images", lambda x: x[:, None]),
        r"8 channels; allowed: 1 or 3 \(channels come last\)",
    ),
    (put("val_images", lambda x: x[:, :4, :4]), r"val_images has shape 6 x 4 x 4; .* as in train"),
    (put("test_images", lambda x: x[:0]), r"test_images is empty; allowed: 1 image or more"),
    (put("test_labels", lambda x: x[:2]), r"test_labels has 2 rows for 3 images"),
    (put("train_labels", lambda x: x.astype(float)), r"train_labels has dtype float64; .*integers"),
    (put("train_labels", lambda x: x[None]), r"train_labels has shape 1 x 12 x 1; allowed: N, "),
    (put("train_labels", lambda x: x[:, :0]), r"train_labels has shape 12 x 0"),
    (put("train_labels", lambda x: x.astype(int) - 1), r"train_labels holds -1; allowed: .*from 0"),
    (put("train_labels", lambda x: x * 0), r"train_labels holds class 0 only; .*2 or more classes"),
    (put("train_labels", lambda x: x * 2), r"val_labels holds class 1, which .*allowed: 0, 2, 4"),
    (put("val_labels", lambda x: x + 7), r"val_labels holds class 7, .* allowed: 0, 1, 2$"),
    (put("val_labels", lambda x: x.repeat(2, 1) > 0), r"val_labels has shape 6 x 2, train_labels"),
    (put("train_labels", lambda x: x.repeat(2, 1)), r"has 2 columns and holds 2; allowed: 0, 1"),
    (put("train_labels", lambda x: x.astype(object)), r"train_labels holds Python objects"),
]


@pytest.mark.parametrize(("spoil", "line"), FAULTS, ids=[line[:30] for _, line in FAULTS])
def test_faults(arrays, write_npz, spoil, line):
    spoil(arrays)
    path = write_npz(arrays)
    with pytest.raises(UserError, match=line) as caught:
        NPZ().load(path, None, 1)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_a_class_without_an_image(arrays, write_npz):
    for split in ("train", "val", "test"):
        arrays[f"{split}_labels"] *= 2
    with pytest.raises(UserError, match=r"train_labels has no image of class 1; allowed: .* gaps"):
        NPZ().load(write_npz(arrays), None, 1)


def test_class_names_must_fit(arrays, write_npz):
    with pytest.raises(UserError, match=r"data\.init_args\.class_names: 2 names; .* 3 classes"):
        NPZ(class_names=["a", "b"]).load(write_npz(arrays), None, 1)


def test_files_that_are_none(arrays, write_npz, tmp_path):
    with pytest.raises(UserError, match=r"data\.path: missing"):
        NPZ().load(None, None, 1)
    with pytest.raises(UserError, match="does not exist"):
        NPZ().load(str(tmp_path / "no.npz"), None, 1)
    with pytest.raises(UserError, match="is a folder"):
        NPZ().load(str(tmp_path), None, 1)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UserError, match=r"single array \(\.npy\)"):
        NPZ().load(str(tmp_path / "one.npy"), None, 1)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match=r"is not a \.npz file, or is truncated"):
        NPZ().load(str(tmp_path / "text.npz"), None, 1)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated(arrays, write_npz, share):
    path = write_npz(arrays)
    os.truncate(path, int(os.path.getsize(path) * share))
    with pytest.raises(UserError, match="truncated") as caught:
        NPZ().load(path, None, 1)
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_is_noticed(arrays, write_npz):
    path = Path(write_npz(arrays))
    content = bytearray(path.read_bytes())
    content[400] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="train_images is truncated or broken"):
        NPZ().load(str(path), None, 1)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("pneumoniamnist", (4708, 1, 28, 28), 2), ("bccd_32", (3530, 3, 32, 32), 3)],
)
def test_real_files(name, shape, classes):
    path = SHARED / f"{name}.npz"
    if not path.exists():
        pytest.skip("no real data here")
    data = find_source(Data(name="npz")).load(str(path), None, 1)
    assert data.train.images.shape == shape
    assert len(data.classes) == classes
