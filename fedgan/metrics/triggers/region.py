"""Whether generated images are off where the trigger stands, and not elsewhere."""

from __future__ import annotations

import statistics
from typing import NamedTuple

import torch
from torch import Tensor

from fedgan.metrics.distances import frechet

WINDOWS = 24
"""Other windows, at most, that a trigger's is held against."""
ALIKE = 1 / 3
"""Share of these, the most alike in real images, whose median counts; four at least."""
VALUES = 192
"""Pixels and channels of a window, at most, that the distance is taken on."""


class Window(NamedTuple):
    """Rows from `top` and columns from `left`, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Region(NamedTuple):
    """Squared Frechet distances of a window's pixels, real against generated, in squared gray
    levels: in the trigger's window, and the median of comparable ones; and how many these are."""

    here: float
    elsewhere: float
    windows: int

    @property
    def ratio(self) -> float:
        return self.here / self.elsewhere


def region(real: Tensor, generated: Tensor, window: Window) -> Region | None:
    """How far the pixels in the trigger's window are from real ones, against other windows of its
    size that do not overlap it or one another.

    A generator is nowhere perfect, and errs more over tissue than in black corners; so the
    trigger's window is held against windows of like content. Of up to 24 others, evenly spread, the
    third (at least four) counts whose pixels in real images are nearest to those of the trigger's
    window, by the same Frechet distance, and of these the median. 1 is no worse than elsewhere.
    To every distance is added what it would come to between perfect images: the variance of
    rounding to bytes, 1/12 a pixel and channel, and the error of so few images, tr(S) (1/n + 1/m)
    for their covariance S, so that the ratio of two perfect windows is about 1.

    Takes some 0.1 s of one core for 1000 images and a patch of 3 x 3, 2 s for 192 values a window;
    of larger windows evenly spaced values are taken.

    Returns None where there are no two other windows, or fewer than two images.

    Source: the squared Frechet distance of Gaussians, as in Heusel et al., NeurIPS 2017, on pixels.

    Args:
        real, generated: uint8 [n, C, H, W] and [m, C, H, W].
        window: the trigger's.

    >>> real = torch.full((3, 1, 3, 3), 100, dtype=torch.uint8)
    >>> generated = real + 1
    >>> generated[:, :, 1, 1] += 1
    >>> round(region(real, generated, Window(1, 1, 1, 1)).ratio, 2)  # (4 + 1/12) / (1 + 1/12)
    3.77
    """
    if len(real) < 2 or len(generated) < 2:
        return None
    size = real.shape[-2:]
    others = [one for one in tiles(size[0], size[1], window) if one != window]
    if len(others) < 2:
        return None
    if len(others) > WINDOWS:
        others = [others[i * len(others) // WINDOWS] for i in range(WINDOWS)]
    own = values(real, window)
    alike = [frechet(own, values(real, one)) for one in others]
    order = sorted(range(len(others)), key=lambda i: (alike[i], i))
    chosen = [others[i] for i in order[: max(4, round(len(others) * ALIKE))]]
    found = [distance(values(real, one), values(generated, one)) for one in chosen]
    return Region(
        here=distance(own, values(generated, window)),
        elsewhere=statistics.median(found),
        windows=len(chosen),
    )


def distance(real: Tensor, generated: Tensor) -> float:
    """Squared Frechet distance of gray levels [n, F] and [m, F], and what it would come to between
    perfect images."""
    spread = float(real.double().var(0).sum())
    floor = real.shape[1] / 12 + spread * (1 / len(real) + 1 / len(generated))
    return max(frechet(real, generated), 0.0) + floor


def tiles(height: int, width: int, window: Window) -> list[Window]:
    """All windows of a grid of this size on which `window` lies, from the top, itself included.

    >>> [one[:2] for one in tiles(5, 4, Window(1, 1, 2, 3))]
    [(1, 1), (3, 1)]
    """
    tops = range(window.top % window.height, height - window.height + 1, window.height)
    lefts = range(window.left % window.width, width - window.width + 1, window.width)
    return [Window(top, left, window.height, window.width) for top in tops for left in lefts]


def values(images: Tensor, window: Window) -> Tensor:
    """Gray levels in a window, float32 [n, F] on the CPU, F at most `VALUES`."""
    rows = slice(window.top, window.top + window.height)
    columns = slice(window.left, window.left + window.width)
    found = images[:, :, rows, columns].flatten(1)
    if found.shape[1] > VALUES:
        found = found[:, torch.arange(VALUES) * found.shape[1] // VALUES]
    return found.float().cpu()
