"""A test for copied training images: whose nearest training images are nearer, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedgan.seeding import derive

CELL_IMAGES = 20
"""Images of a cell, at least, generated and held out, for its z to be near normal; Meehan et al.
ask for as many generated ones."""
IMAGES_A_CELL = 50
"""Held-out images for each cell, on average."""
MOST_CELLS = 10
BETA_POINTS = 200
"""Quantiles that the spread of the threshold is averaged over."""


class MannWhitney(NamedTuple):
    """How one sample lies to another."""

    auc: float
    """Probability that a value of the first is above one of the second, ties counting half."""
    auc_low: float
    auc_high: float
    """The 95 % interval of `auc` (DeLong)."""
    z: float
    """Standard normal where both have one distribution; below 0 where the first lies lower."""
    p: float
    """One-sided: how likely a z as low as this is where both have one distribution."""


class Cells(NamedTuple):
    """What the cells say together."""

    ct: float
    """Meehan et al.'s C_T, the mean of the cells' z."""
    z: float
    """The same sum over its standard deviation: standard normal where nothing is copied."""
    p: float
    """One-sided: how likely a z as low as this is where nothing is copied."""
    used: int
    cells: int


def mann_whitney(first: Tensor, second: Tensor) -> MannWhitney:
    """Whether values [m] lie below others [n]; normal approximation, ties taken into account.

    Source: Mann and Whitney (1947); DeLong et al. (Biometrics 1988), equation 2, for the interval.

    >>> found = mann_whitney(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
    >>> found.auc, round(found.z, 3)
    (0.125, -1.225)
    """
    from scipy.special import ndtr
    from scipy.stats import rankdata

    m, n = len(first), len(second)
    values = torch.cat([first, second]).numpy()
    ranks = torch.from_numpy(rankdata(values))
    # how many of the other sample each value is above
    above = (ranks[:m] - torch.from_numpy(rankdata(first.numpy()))) / n
    below = 1 - (ranks[m:] - torch.from_numpy(rankdata(second.numpy()))) / m
    auc = float(above.mean())
    error = math.sqrt(_variance(above) / m + _variance(below) / n)
    _, ties = torch.unique(torch.from_numpy(values), return_counts=True)
    tied = float((ties.double() ** 3 - ties).sum()) / ((m + n) * max(m + n - 1, 1))
    spread = math.sqrt(m * n / 12 * ((m + n + 1) - tied))
    z = (auc - 0.5) * m * n / spread if spread > 0 else 0.0
    low, high = max(0.0, auc - 1.96 * error), min(1.0, auc + 1.96 * error)
    return MannWhitney(auc, low, high, z, float(ndtr(z)))


def cell_centres(train: Tensor, held_out: int, seed: int) -> Tensor:
    """Centres [cells, F] of the cells of C_T: k-means of the training features [N, F], one for each
    50 of the images held out, 10 at most.

    Takes 1.4 s at 4000 images and 1280 features.

    >>> cell_centres(torch.tensor([[0.0], [2.0]]), held_out=30, seed=0)
    tensor([[1.]])
    """
    from sklearn.cluster import KMeans

    cells = max(1, min(MOST_CELLS, held_out // IMAGES_A_CELL, len(train)))
    if cells == 1:
        return train.mean(0, keepdim=True)
    state = derive(seed, "memory", "cells") % 2**32
    means = KMeans(cells, n_init=1, random_state=state).fit(train.numpy())
    return torch.from_numpy(means.cluster_centers_)


def data_copying(
    generated: Tensor, held_out: Tensor, generated_cells: Tensor, held_out_cells: Tensor, cells: int
) -> Cells:
    """Meehan et al.'s C_T of distances [m] and [n] to the training images, in their cells.

    The z of each cell with 20 images of both kinds, averaged by the number of held-out images:

        C_T = sum P_n(c) z(c) / sum P_n(c)

    Each z is standard normal where generated and held-out images have one distribution in the
    cell, so C_T has a standard deviation of 1 at one cell, and of less at more; `z` is C_T over it.
    Where no cell has enough images, all images are one cell. Takes milliseconds; the distances that
    it is given are what costs (`neighbours`).

    Source: "A Non-Parametric Test to Detect Data-Copying in Generative Models" (AISTATS 2020), 3.2.

    >>> d, cell = torch.arange(40.0), torch.zeros(40)
    >>> data_copying(d, d, cell, cell, cells=1)
    Cells(ct=0.0, z=0.0, p=0.5, used=1, cells=1)
    """
    from scipy.special import ndtr

    zs, weights = [], []
    for cell in range(cells):
        ours, theirs = generated[generated_cells == cell], held_out[held_out_cells == cell]
        if min(len(ours), len(theirs)) >= CELL_IMAGES:
            zs.append(mann_whitney(ours, theirs).z)
            weights.append(len(theirs))
    if not zs:
        zs, weights, cells = [mann_whitney(generated, held_out).z], [1], 1
    total = sum(weight * z for weight, z in zip(weights, zs, strict=True))
    z = total / math.sqrt(sum(weight**2 for weight in weights))
    return Cells(total / sum(weights), z, float(ndtr(z)), len(zs), cells)


def near_interval(near: int, images: int, rank: int, held_out: int) -> tuple[float, float]:
    """The 95 % interval of the share of images that lie near, of which `near` of `images` are
    within the `rank`-th smallest of `held_out` distances.

    Of nothing copied, the share within that threshold is itself chance, Beta(rank, held_out + 1 -
    rank): with 6 of 624 it is 0.4 to 1.9 %. The interval holds this beside the luck of the draw. A
    share e of copies makes it e + (1 - e) B with that B, and the number near is binomial; `low`
    and `high` are the shares, at B's mean, with which so many or more, so few or fewer, have a
    chance of 2.5 %. So of nothing copied `low` is above rank / (held_out + 1) in 2.5 % at most.

    Source: fedgan; the distribution of coverage by an order statistic: Wilks (1941).

    >>> [round(end, 3) for end in near_interval(40, 1000, rank=6, held_out=624)]
    [0.026, 0.056]
    """
    import numpy as np
    from scipy.stats import beta, binom

    shares = beta.ppf((np.arange(BETA_POINTS) + 0.5) / BETA_POINTS, rank, held_out + 1 - rank)
    mean = rank / (held_out + 1)

    def at_least(share: float, count: int) -> float:
        """The chance of so many near images or more, with this share of them."""
        copies = (share - mean) / (1 - mean)
        within = np.clip(copies + (1 - copies) * shares, 0, 1)
        return float(binom.sf(count - 1, images, within).mean())

    # both rise with the share
    low = _share_where(lambda share: at_least(share, near) >= 0.025) if near > 0 else 0.0
    high = _share_where(lambda share: at_least(share, near + 1) >= 0.975) if near < images else 1.0
    return low, high


def _share_where(reached: Callable[[float], bool]) -> float:
    """From where in [0, 1] on something is reached, to 1e-9."""
    if reached(0.0):
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def _variance(values: Tensor) -> float:
    return float(values.var()) if len(values) > 1 else 0.0
