"""The embedded data set: same bytes, splits apart, four levels that can be told apart."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from fedgan.data import brain_mri
from fedgan.data.brain_mri import BANDS, LEVELS, SIZES, BrainMRI, positions, rotations, spline
from fedgan.errors import UserError


def digest(dataset) -> str:
    parts = (dataset.train, dataset.val, dataset.test)
    content = b"".join(p.images.numpy().tobytes() + p.labels.numpy().tobytes() for p in parts)
    return hashlib.sha256(content).hexdigest()


def test_shapes(brains):
    assert brains.train.images.shape == (80, 1, 32, 32)
    assert brains.train.images.dtype == torch.uint8
    assert brains.train.labels.dtype == torch.int64
    for part, each in ((brains.train, 20), (brains.val, 5), (brains.test, 5)):
        assert part.labels.bincount().tolist() == [each] * 4
    assert brains.classes == tuple(name for name, _, _ in LEVELS)
    assert brains.flip


def test_images_show_a_brain_on_black(brains):
    images = brains.train.images[:, 0].float()
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)
    assert border.mean() < 3
    assert (images[:, 8:24, 8:24].mean(dim=(1, 2)) > 40).all()
    assert images.max() > 200


def test_the_cache_is_used_and_a_rebuilt_one_is_the_same(brains, monkeypatch, tmp_path):
    source = BrainMRI(train=80, val=20, test=20)
    with monkeypatch.context() as patch:
        patch.setattr(brain_mri, "cut", None)  # whoever builds now, fails
        assert digest(source.load(None, 32, seed=1)) == digest(brains)
    monkeypatch.setenv("FEDGAN_CACHE", str(tmp_path))
    assert digest(source.load(None, 32, seed=1)) == digest(brains)
    assert digest(source.load(None, 32, seed=2)) != digest(brains)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    data = BrainMRI(train=4, val=4, test=4).load(None, size, seed=1)
    assert data.train.images.shape == (4, 1, size, size)


def test_splits_are_apart_by_position():
    at = {split: positions(split, 4000, 1) for split in BANDS}
    for label, (_, bottom, top) in enumerate(LEVELS):
        for labels, z in at.values():
            mine = z[labels == label]
            assert len(mine) == 1000
            assert bottom < mine.min() <= mine.max() < top
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        gaps = np.abs(at[one][1][:, None] - at[other][1][None])
        assert gaps.min() >= 1.0 - 1e-9

    border = LEVELS[0][2]
    labels, z = at["test"]  # on both sides of the border, as near on one as on the other
    for label, side in ((0, border - z), (1, z - border)):
        assert 1.0 <= side[labels == label].min() < 1.1


def test_rotations_are_rotations():
    angles = np.random.default_rng(0).uniform(-1, 1, (3, 5))
    turns = rotations(*angles)
    assert np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3))
    assert np.allclose(np.linalg.det(turns), 1.0)


def test_the_spline_carries_lines_to_lines():
    weights = spline(32)
    assert np.allclose(weights.sum(axis=1), 1.0)
    assert np.allclose(np.diff(weights @ np.arange(5.0), n=2), 0.0)


def test_a_linear_classifier_finds_the_levels_but_not_all():
    data = BrainMRI(train=800, val=20, test=200).load(None, 28, seed=1)
    x, y = (
        data.train.images.flatten(1).double() / 255,
        torch.nn.functional.one_hot(data.train.labels),
    )
    kernel = x @ x.T + 10 * torch.eye(len(x))  # ridge regression
    weights = x.T @ torch.linalg.solve(kernel, y.double() - 0.25)
    guess = (data.test.images.flatten(1).double() / 255 @ weights).argmax(1)
    assert 0.7 < (guess == data.test.labels).double().mean() < 1.0


def test_scanners_differ_and_leave_the_anatomy(brains):
    images = brains.train.images
    plain, scanner = BrainMRI(), BrainMRI(scanners=True)
    assert torch.equal(plain.acquire(images, 0, 1), images)
    seen = [scanner.acquire(images, client, 1) for client in range(4)]
    assert torch.equal(seen[0], scanner.acquire(images, 0, 1))
    for client in range(4):
        assert seen[client].dtype == torch.uint8
        assert not torch.equal(seen[client], seen[client - 1])
        pair = torch.stack([seen[client].flatten(), images.flatten()]).float()
        assert torch.corrcoef(pair)[0, 1] > 0.9
        noise = (seen[client].float() - images.float())[:, :, :2, :2].mean()
        assert 2 < noise < 20  # Rician: the background is lifted


@pytest.mark.parametrize(
    ("source", "path", "size", "line"),
    [
        (BrainMRI, None, 48, r"data\.size: 48; allowed for brain-mri: 28, 32, 64, 128"),
        (BrainMRI, "here", 32, r"data\.path: here; brain-mri is cut from nilearn"),
        (lambda: BrainMRI(test=0), None, 32, r"data\.init_args\.test: 0; allowed: at least 4"),
    ],
)
def test_faults(source, path, size, line):
    with pytest.raises(UserError, match=line):
        source().load(path, size, 1)


def test_without_nilearn(monkeypatch):
    monkeypatch.setattr(brain_mri.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"data\.name: brain-mri needs .*nilearn: pip install"):
        BrainMRI().load(None, 32, 1)
