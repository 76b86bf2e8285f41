"""A table of trainings, an arm and a seed a row, and what is read off it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from fedgan.metrics.recovery import LEVEL, t_quantile

Row = dict[str, Any]
COLUMNS = (
    "accuracy",
    "balanced_accuracy",
    "auc",
    "stamped_accuracy",
    "stamped_balanced_accuracy",
    "minority_recall",
)
EQUAL = 1e-6
"""Differences that deviate by less are equal: scores are float32, and the rest is rounding."""


class Table:
    """Rows with the keys `arm` and `seed`, and numbers by column; seeds of an arm in order.

    >>> rows = [{"arm": arm, "seed": 0, "auc": auc} for arm, auc in (("a", 0.5), ("b", 0.75))]
    >>> Table(rows).differences("b", "a", "auc")
    [0.25]
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    @property
    def arms(self) -> list[str]:
        """Their names, in the order in which they first stand."""
        return list(dict.fromkeys(row["arm"] for row in self.rows))

    def values(self, arm: str, column: str) -> list[float]:
        """A number a seed; empty where the arm has no such column, or no value in it."""
        held = [row.get(column) for row in self.rows if row["arm"] == arm]
        return [value for value in held if value is not None]

    def differences(self, arm: str, other: str, column: str) -> list[float]:
        """The arm's less the other's, seed by seed."""
        pairs = zip(self.values(arm, column), self.values(other, column), strict=True)
        return [a - b for a, b in pairs]

    def summary(self) -> list[Row]:
        """For each arm and column: mean, std (None for one seed), and all values."""
        found = []
        for arm in self.arms:
            for column in COLUMNS:
                if values := self.values(arm, column):
                    std = stdev(values) if len(values) > 1 else None
                    about = {"arm": arm, "column": column, "mean": fmean(values), "std": std}
                    found.append({**about, "values": values})
        return found


def mean_and_std(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean by that name and, of more than one value, the sample's deviation as `name_std`.

    >>> mean_and_std("gain", [1.0, 3.0, 5.0])
    {'gain': 3.0, 'gain_std': 2.0}
    """
    found = {name: fmean(values)}
    if len(values) > 1:
        found[f"{name}_std"] = stdev(values)
    return found


@dataclass(frozen=True)
class Comparison:
    """Two arms, seed by seed.

    Attributes:
        what: the words for it.
        column: which number is compared.
        differences: of that number, one a seed.
    """

    what: str
    column: str
    differences: Sequence[float]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The paired 95 % t interval of the mean difference, of this comparison alone; None with
        one seed, and where all differences are equal.

        >>> low, high = Comparison("all", "auc", [1.0, 2.0, 3.0]).interval
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
        """
        n, mean = len(self.differences), fmean(self.differences)
        if n < 2 or stdev(self.differences) < EQUAL:
            return None
        half = t_quantile(LEVEL, n - 1) * stdev(self.differences) / math.sqrt(n)
        return mean - half, mean + half

    @property
    def p(self) -> float:
        """Two-sided, by the paired t test. Where all differences are equal, as figures of few test
        images may be, no spread is no certainty: there the sign test decides. 1 with one seed.

        >>> [round(Comparison("all", "auc", of).p, 3) for of in ([1.0, 2.0, 3.0], [1.0, 1.0])]
        [0.074, 0.5]
        """
        from scipy.stats import t

        n, mean = len(self.differences), fmean(self.differences)
        if n < 2 or abs(mean) < EQUAL:
            return 1.0
        spread = stdev(self.differences)
        if spread < EQUAL:
            return 2.0 ** (1 - n)
        return float(2 * t.sf(abs(mean) * math.sqrt(n) / spread, n - 1))


def judged(comparisons: Sequence[Comparison]) -> tuple[list[Row], list[str]]:
    """What all comparisons of an evaluation show: a row each, and a sentence each after one that
    says how many there are.

    A mean difference is called a gain or a loss only where its p, after Holm's correction for all
    of the comparisons, is below 5 %: of comparisons without any effect, one is named in 5 % of
    evaluations at most. Rows hold `what`, `column`, `mean`, the interval's `low` and `high` (of
    that comparison alone), `p`, `p_holm` and `shown`.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (Scand. J. Stat. 1979).

    >>> rows, words = judged([Comparison("all", "auc", [0.20, 0.21, 0.22])])
    >>> words[1]
    'all: auc +0.210 (95 % interval +0.185 to +0.235, 3 seeds), a gain'
    >>> judged([Comparison("all", "auc", [0.25, -0.25])])[1][1]
    'all: auc +0.000 (95 % interval -3.177 to +3.177, 2 seeds): nothing shown'
    """
    if not comparisons:
        return [], []
    corrected = holm([comparison.p for comparison in comparisons])
    rows = []
    for comparison, p in zip(comparisons, corrected, strict=True):
        low, high = comparison.interval or (None, None)
        mean = fmean(comparison.differences)
        row: Row = {"what": comparison.what, "column": comparison.column, "mean": mean}
        row |= {"low": low, "high": high, "seeds": len(comparison.differences)}
        shown = ("a gain" if mean > 0 else "a loss") if p < 1 - LEVEL else None
        rows.append({**row, "p": comparison.p, "p_holm": p, "shown": shown})
    count = len(rows)
    first = (
        f"{count} comparison{'s' * (count > 1)} of arms: one is called a gain or a loss where the "
        "paired t test over seeds has p < 0.05 after Holm's correction for all of them; the "
        "intervals are each comparison's own, uncorrected"
    )
    return rows, [first, *map(_sentence, rows)]


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for being so many.

    >>> holm([0.04, 0.01, 0.5])
    [0.08, 0.03, 0.5]
    """
    corrected, least = [1.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = min(1.0, max(least, (len(ps) - rank) * ps[i]))
        corrected[i] = least
    return corrected


def _sentence(row: Row) -> str:
    words = f"{row['what']}: {row['column'].replace('_', ' ')} {row['mean']:+.3f}"
    if row["seeds"] < 2:
        return f"{words}, of one seed: no spread to hold it against, nothing shown"
    spread = "the same with all "
    if row["low"] is not None:
        spread = f"95 % interval {row['low']:+.3f} to {row['high']:+.3f}, "
    words += f" ({spread}{row['seeds']} seeds)"
    return f"{words}, {row['shown']}" if row["shown"] else f"{words}: nothing shown"
