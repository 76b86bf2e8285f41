"""Augmentation against a naive reference, and through two derivatives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgan.data.augment import cutout, mirror, translate


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, edge: int = 8) -> torch.Tensor:
    return torch.rand(n, 2, edge, edge, generator=rng(9)) + 0.5


def test_translate_is_a_reflected_shift_within_its_bounds():
    x = images(300)
    y = translate(x, 0.25, rng())
    found = set()
    for before, after in zip(x.numpy(), y.numpy(), strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (2, 2)), mode="reflect")
        fits = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if np.array_equal(padded[:, 2 - dy : 10 - dy, 2 - dx : 10 - dx], after)
        ]
        assert len(fits) == 1
        found.add(fits[0])
    assert len(found) == 25  # every shift is drawn


def test_the_generator_decides():
    x = images()
    for change in (lambda g: translate(x, 0.5, g), lambda g: cutout(x, 0.5, g)):
        assert torch.equal(change(rng(1)), change(rng(1)))
        assert not torch.equal(change(rng(1)), change(rng(2)))


def test_a_share_of_nothing_changes_nothing():
    x = images()
    assert torch.equal(translate(x, 0.0, rng()), x)
    assert torch.equal(cutout(x, 0.0, rng()), x)
    assert translate(x, 1.0, rng()).shape == cutout(x, 1.0, rng()).shape == x.shape


def test_cutout_erases_one_square():
    x = images(200)
    y = cutout(x, 0.5, rng())
    erased = y == 0
    assert torch.equal(y, torch.where(erased, 0.0, x))
    assert torch.equal(erased[:, 0], erased[:, 1])
    hole = erased[:, 0]
    rows, columns = hole.any(2), hole.any(1)
    assert torch.equal(hole, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):  # contiguous, 2 to 4 pixels: it may reach over the border
        assert (line.diff(dim=1).sum(1) <= 2).all()
        assert set(line.sum(1).tolist()) == {2, 3, 4}


def test_mirror_swaps_about_half():
    x = images(400)
    y = mirror(x, rng())
    same = (y == x).flatten(1).all(1)
    swapped = (y == x.flip(-1)).flatten(1).all(1)
    assert (same | swapped).all()
    assert 150 < swapped.sum() < 250


@pytest.mark.parametrize("name", ["translate", "cutout", "mirror"])
def test_two_derivatives(name):
    change = {
        "translate": lambda x: translate(x, 0.4, rng()),
        "cutout": lambda x: cutout(x, 0.4, rng()),
        "mirror": lambda x: mirror(x, rng()),
    }[name]
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=rng(3)).requires_grad_()
    torch.autograd.gradcheck(lambda x: change(x) ** 3, x)
    torch.autograd.gradgradcheck(lambda x: change(x) ** 3, x)
