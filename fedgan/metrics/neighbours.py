"""Nearest neighbours among features: exact distances, block by block, also of near-duplicates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 1000
"""Rows of a job: fixed, so that the same products are taken however many ranks share them."""
COLUMNS = 4000
"""Columns of a block: with ROWS it bounds a block of float64 distances at 32 MB."""
NEAR = 1e-4
"""Squared distances below this share of the two squared lengths are taken anew: a product is right
to some 1e-14 of the lengths at F = 1280, so what is left has ten digits."""
FEW = 8
"""Near pairs of a row, at most, that are taken one by one, at 20 times a crowd's cost and more."""
PAIRS = 4096
"""Pairs that are taken one by one at a time."""
SLACK = 1.0 + 1e-9
"""A squared distance counts as within a squared radius up to this factor, so that a neighbour at
exactly the radius is in, whatever product each of the two was taken from."""


class Nearest(NamedTuple):
    """Squared distance to the nearest neighbour, float64 [n], and which it is, int64 [n]."""

    squared: Tensor
    which: Tensor


def row_blocks(n: int) -> list[slice]:
    """All of n rows, in the blocks that jobs take: one at least.

    >>> row_blocks(1500)
    [slice(0, 1000, None), slice(1000, 1500, None)]
    """
    return [slice(start, min(start + ROWS, n)) for start in range(0, max(n, 1), ROWS)]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances, float64 [n, m], of features [n, F] and [m, F].

    They come from one matrix product in float64, after b's mean is taken off both. Where two
    features are so near one another that |a|^2 + |b|^2 - 2 a.b cancels, they are taken anew: a
    crowd of features, as a collapsed generator makes, from a product about one of its own members,
    lone pairs from their difference. So each is right to 1e-10 relative, and that of equal features
    is 0.

    Source: fedgan. Takes 0.2 s of one core for 1000 x 1000 distances at F = 1280, twice that where
    all features crowd around a few.

    >>> squared_distances(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    tensor([[25.,  0.]], dtype=torch.float64)
    """
    a, b = a.double(), b.double()
    return _about(b.mean(0), a, b)


def _about(origin: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`squared_distances` of float64 features from their product about an origin [F]."""
    x, y = a - origin, b - origin
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    squared = torch.addmm(lengths, x, y.T, alpha=-2)
    near = squared < NEAR * lengths
    for row in (near.sum(1) > FEW).nonzero()[:, 0].tolist():
        columns = near[row].nonzero()[:, 0]
        if len(columns) <= FEW:  # what was near it has been in a crowd before
            continue
        # About this row a crowd's lengths are no larger than its distances. The row itself is done
        # with that, as its length is 0, so this ends.
        rows = near[:, columns[0]].nonzero()[:, 0]
        squared[rows[:, None], columns] = _about(a[row], a[rows], b[columns])
        near[rows[:, None], columns] = False
    for pairs in near.nonzero().split(PAIRS):
        squared[tuple(pairs.T)] = _one_by_one(a, b, pairs)
    return squared.clamp_min_(0)


def _one_by_one(a: Tensor, b: Tensor, pairs: Tensor) -> Tensor:
    """Squared distances of pairs of rows, int64 [p, 2]: exact, and slow."""
    i, j = pairs.unbind(1)
    return (a[i] - b[j]).square().sum(1)


def column_blocks(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    """`squared_distances` to COLUMNS of b at a time, with the number of the first column."""
    for start in range(0, len(b), COLUMNS):
        yield start, squared_distances(a, b[start : start + COLUMNS])


def kth_nearest(features: Tensor, k: int, rows: slice) -> Tensor:
    """Squared distance, float64, from each of some rows of features [n, F] to its k-th nearest
    neighbour among all others; it is not its own neighbour, but a copy of it is.

    Raises `ValueError` where there are no k others.

    >>> kth_nearest(torch.tensor([[0.0], [1.0], [3.0]]), 2, slice(0, 3))
    tensor([9., 4., 9.], dtype=torch.float64)
    """
    if not 1 <= k < len(features):
        raise ValueError(f"k must be between 1 and {len(features) - 1}, found {k}")
    chosen = features[rows]
    own = torch.arange(len(features))[rows]
    best = torch.full((len(chosen), k), torch.inf, dtype=torch.float64)
    for start, squared in column_blocks(chosen, features):
        here = (own >= start) & (own < start + squared.shape[1])
        squared[here, own[here] - start] = torch.inf
        best = torch.cat([best, squared], 1).topk(k, largest=False).values
    return best[:, -1]


def nearest(a: Tensor, b: Tensor) -> Nearest:
    """The nearest of features [m, F], m >= 1, to each of features [n, F]; the first of equals.

    >>> nearest(torch.tensor([[0.9], [5.0]]), torch.tensor([[0.0], [1.0]])).which
    tensor([1, 1])
    """
    found = Nearest(
        torch.full((len(a),), torch.inf, dtype=torch.float64),
        torch.zeros(len(a), dtype=torch.int64),
    )
    for start, squared in column_blocks(a, b):
        least, where = squared.min(1)
        nearer = least < found.squared
        found = Nearest(
            torch.where(nearer, least, found.squared),
            torch.where(nearer, where + start, found.which),
        )
    return found
