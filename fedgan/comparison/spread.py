"""Figures over seeds: their spread, their paired differences, and what these show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

LEVEL = 0.95
"""Of intervals; 1 less this is the chance of calling anything better or worse by mistake."""
Shown = Literal["better", "worse", "nothing shown", "one seed"]


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds of a cell.

    Attributes:
        mean: over seeds.
        std: the sample's standard deviation (n - 1); None with one seed.
        n: number of seeds.
        by_seed: the figure of each.
        step: the least by which two values of the figure can differ: 1 / images of a share of
            images; 0 of one that can have any value.
    """

    mean: float
    std: float | None
    n: int
    by_seed: dict[int, float]
    step: float = 0.0

    @classmethod
    def of(cls, by_seed: Mapping[int, float], step: float = 0.0) -> Spread | None:
        """None of nothing.

        >>> found = Spread.of({1: 1.0, 2: 3.0, 3: 5.0})
        >>> found.mean, found.std, found.n
        (3.0, 2.0, 3)
        """
        if not by_seed:
            return None
        own = dict(sorted(by_seed.items()))
        values = list(own.values())
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), std, len(values), own, step)


@dataclass(frozen=True)
class Difference:
    """A cell's figure less that of another, seed by seed.

    Attributes:
        mean: of the differences of the seeds that both have.
        low, high: its confidence interval by Student's t, at the comparison's level, for this
            difference alone; None with one seed.
        n: number of these seeds.
        p: two-sided p-value of the paired t test that the mean is 0; None with one seed.
        p_holm: the same after Holm's correction for all differences that are tested together.
        shown: `better` or `worse` where `p_holm` is at most 1 - level, and so the interval excludes
            0; `nothing shown`; or `one seed`, of which nothing can be shown.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    p: float | None
    p_holm: float | None
    shown: Shown


def paired_difference(ours: Spread, theirs: Spread, *, level: float = LEVEL) -> Difference | None:
    """Ours less theirs over the seeds that both have; None where there is none.

    Pairing cancels what a seed does to both. Where all differences are equal, the t test knows no
    doubt: p is 1 for no difference and 0 for any. Of counted figures that is mere chance, as where
    one image of hundreds has the trigger with every seed: the deviation of their differences is
    taken to be no less than that of rounding both to whole steps, step / sqrt 6 (Sheppard's
    variance of rounding, step^2 / 12, twice). Nothing is shown yet: `judged` does that, when all
    p-values are known.

    >>> ours, theirs = Spread.of({1: 1.0, 2: 3.0, 3: 2.0}), Spread.of({1: 2.0, 2: 5.0, 3: 5.0})
    >>> found = paired_difference(ours, theirs)
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3), round(found.p, 4)
    (-2.0, -4.484, 0.484, 0.0742)
    """
    shared = [seed for seed in ours.by_seed if seed in theirs.by_seed]
    if not shared:
        return None
    differences = [ours.by_seed[seed] - theirs.by_seed[seed] for seed in shared]
    n, mean = len(shared), statistics.fmean(differences)
    if n == 1:
        return Difference(mean, None, None, 1, None, None, "one seed")
    from scipy.stats import t

    rounding = max(ours.step, theirs.step) / math.sqrt(6)
    error = max(statistics.stdev(differences), rounding) / math.sqrt(n)
    half = float(t.ppf((1 + level) / 2, n - 1)) * error
    p = 2 * float(t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return Difference(mean, mean - half, mean + half, n, p, None, "nothing shown")


def judged(
    differences: Sequence[Difference | None], *, less_is_better: bool, level: float = LEVEL
) -> list[Difference | None]:
    """The differences, in order, with what they show, corrected for all of them together."""
    tested = [one.p for one in differences if one is not None and one.p is not None]
    adjusted = iter(holm(tested))
    return [
        one if one is None or one.p is None else _judged(one, next(adjusted), less_is_better, level)
        for one in differences
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979, Scand. J. Statist. 6, 65) adjusted p-values: those at most alpha are rejected,
    and the chance of rejecting any true hypothesis is then at most alpha, whatever depends on what.

    The k-th smallest of m is multiplied by m - k + 1, and is no less than those before it.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        found[i] = highest
    return found


def _judged(one: Difference, p_holm: float, less_is_better: bool, level: float) -> Difference:
    shown: Shown = "nothing shown"
    if p_holm <= 1 - level:
        shown = "better" if (one.mean < 0) == less_is_better else "worse"
    return replace(one, p_holm=p_holm, shown=shown)
