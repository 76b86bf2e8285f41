"""Floors of distances: what real images get against real ones, over several pairs of halves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

PAIRS = 10
"""Pairs of halves, at most, that a Frechet distance's floor is the mean of."""
FEWEST = 5
ENOUGH = 0.03
"""Standard error of that mean, as a share of it, at which no further pair is drawn: with thousands
of features each takes seconds, and they hardly differ."""
Pair = dict[str, float]
"""The distances of two halves, by name; those of class i are called `fid of i` and so on."""


def enough(pairs: Sequence[Pair], names: Sequence[str]) -> bool:
    """Whether the means of these distances over pairs of halves are known well enough.

    >>> enough([{"fid": 6.0}, {"fid": 6.3}, {"fid": 5.9}, {"fid": 6.0}, {"fid": 6.1}], ["fid"])
    True
    >>> enough([{"fid": 6.0}, {"fid": 6.3}], ["fid"])
    False
    """
    if len(pairs) < FEWEST:
        return False
    drawn = [[pair[name] for pair in pairs] for name in names]
    return all(stdev(one) <= ENOUGH * fmean(one) * math.sqrt(len(one)) for one in drawn)


def mean_floor(pairs: Sequence[Pair], name: str) -> float | None:
    """The mean over the pairs that have it: a class may have too few images in some.

    >>> mean_floor([{"fid": 6.0, "fid of 0": 7.0}, {"fid": 5.0}], "fid of 0")
    7.0
    """
    found = [pair[name] for pair in pairs if name in pair]
    return fmean(found) if found else None


def worst(
    rows: Sequence[dict[str, Any]], name: str, key: str, pairs: Sequence[Pair]
) -> dict[str, float]:
    """The largest distance over the classes that have enough images, and what real images get: the
    largest of a pair's, as a mean over the pairs. Nothing where a class lacks it that has a kernel
    distance.

    Args:
        rows: `kd`, `kd_floor` and `key` of each class.
        name: of the distance.
        key: of the distance in the rows.

    >>> worst([{"kd": 3.0, "kd_floor": 1.0}], "kid", "kd", [{"kid of 0": 1.0}])
    {'kid_worst_class': 3.0, 'kid_worst_class_floor': 1.0}
    """
    measured = [
        i for i, row in enumerate(rows) if row["kd"] is not None and row["kd_floor"] is not None
    ]
    floors = [[pair[own] for i in measured if (own := f"{name} of {i}") in pair] for pair in pairs]
    known = all(rows[i][part] is not None for i in measured for part in (key, f"{key}_floor"))
    if not (measured and known):
        return {}
    return {
        f"{name}_worst_class": max(rows[i][key] for i in measured),
        f"{name}_worst_class_floor": fmean(max(own) for own in floors if own),
    }
