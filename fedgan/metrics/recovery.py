"""How much of an attack's harm a defence has undone, over runs of several seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
LEAST_LEAKAGE = 0.01
"""Presence by which the attacked arm must exceed the clean one: so many false alarms a detector of
the trigger may give on an unpoisoned generator. 2 images of 1000 against none are no leakage, of
which all could be won back."""


@dataclass(frozen=True)
class Recovery:
    """What of the harm is undone: 1 is all of it, 0 nothing, below 0 the defence did harm.

    Attributes:
        value: ratio of the means; None where it is undefined.
        low, high: its confidence interval; None where there is none.
        harm: mean of the attacked arm less mean of the clean one.
        harm_low, harm_high: its confidence interval; None where an arm has one run only.
        by_seed: recovery of each seed that all three arms have; None where the attack did no harm
            with that seed. A single seed's is noisy, and their mean is not `value`.
        paired: whether seeds were compared with themselves.
        verdict: in words.
    """

    value: float | None
    low: float | None
    high: float | None
    harm: float
    harm_low: float | None
    harm_high: float | None
    by_seed: dict[int, float | None] = field(default_factory=dict)
    paired: bool = True
    verdict: str = ""


def recovery(
    clean: Mapping[int, float],
    attacked: Mapping[int, float],
    defended: Mapping[int, float],
    *,
    level: float = LEVEL,
    lost: str = "distance lost",
    least: float = 0.0,
) -> Recovery:
    """1 - (FD_defended - FD_clean) / (FD_attacked - FD_clean), and its confidence interval.

    Each arm maps seeds to Frechet distances, or to any figure of which less is better. The ratio is
    taken of the arms' means, (A - D) / (A - C): a mean of ratios has no expectation, and a single
    seed whose attack did next to nothing would decide it.

    The interval is Fieller's (1954, JRSS B 16, 175): all r for which the mean of
    (A - D) - r (A - C) does not differ from 0 by a t test. It is exact for normal figures with as
    few as 2 seeds, where a percentile bootstrap has but a handful of different resamples: of 95 %
    intervals, simulated, it covers 73 % with 3 seeds and 83 % with 5, and Fieller's 96 and 94 %.
    Where the three arms have the same seeds, these are paired, so that what a seed does to all arms
    cancels. Elsewhere the arms are taken for independent samples, with the degrees of freedom of
    Welch and Satterthwaite at the estimate; with some seeds in common, whose arms rise and fall
    together, this is too wide rather than too narrow.

    Recovery is undefined where the attack did no harm larger than the spread between seeds: where
    the confidence interval of A - C holds 0, at which Fieller's is no longer an interval either. An
    arm with one seed has no spread: there is then a value, if A - C > `least`, and no interval.

    Cost: a millisecond.

    Args:
        level: of the intervals, in (0, 1).
        lost: what the harm is called in the verdict.
        least: harm that is none, of which recovery is undefined, however many seeds agree on it.

    Raises:
        ValueError: for an arm without a run, a figure that is not finite, or a level out of range.

    >>> clean, attacked = {1: 10.0, 2: 11.0, 3: 10.4}, {1: 30.0, 2: 32.0, 3: 31.0}
    >>> found = recovery(clean, attacked, {1: 14.0, 2: 15.2, 3: 14.9})
    >>> found.verdict
    '79 % of the distance lost is won back (95 % interval 77 % to 82 %; 3 seeds, paired)'
    """
    named = {"clean": clean, "attacked": attacked, "defended": defended}
    arms = [_checked(name, arm) for name, arm in named.items()]
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must be in (0, 1)")
    paired = set(clean) == set(attacked) == set(defended)
    means = _paired(*arms) if paired else _independent(*arms)
    shared = sorted(set(clean) & set(attacked) & set(defended))
    by_seed = {seed: _ratio(clean[seed], attacked[seed], defended[seed]) for seed in shared}
    found = replace(means.recovery(level), by_seed=by_seed, paired=paired)
    if found.harm <= least:
        found = replace(found, value=None, low=None, high=None)
    runs = _runs([len(arm) for arm in arms], paired)
    return replace(found, verdict=_verdict(found, runs, level, lost, least))


def leakage_removed(
    clean: Mapping[int, float],
    attacked: Mapping[int, float],
    defended: Mapping[int, float],
    *,
    level: float = LEVEL,
) -> Recovery:
    """The share of the trigger's leakage into generated images that a defence has removed.

    As `recovery`, of trigger presence rates by seed instead of distances. A clean arm's presence is
    the filter's false alarms; a leakage of `LEAST_LEAKAGE` or less might be.

    >>> leakage_removed({1: 0.01}, {1: 0.81}, {1: 0.21}).verdict
    '75 % of the leakage is won back (1 seed: no interval)'
    """
    return recovery(clean, attacked, defended, level=level, lost="leakage", least=LEAST_LEAKAGE)


class _Means(NamedTuple):
    """What Fieller's interval needs of gain (A - D) and harm (A - C): means, variances of the
    means, their covariance, and the degrees of freedom of either; variances are NaN with one run.
    """

    gain: float
    harm: float
    var_gain: float
    var_harm: float
    covariance: float
    freedom: float
    freedom_harm: float

    def recovery(self, level: float) -> Recovery:
        """The ratio, the harm and their intervals."""
        value, low, high = self.fieller(level)
        return Recovery(value, low, high, self.harm, *self.harm_interval(level))

    def harm_interval(self, level: float) -> tuple[float | None, float | None]:
        if math.isnan(self.var_harm):
            return None, None
        half = t_quantile(level, self.freedom_harm) * math.sqrt(self.var_harm)
        return self.harm - half, self.harm + half

    def fieller(self, level: float) -> tuple[float | None, float | None, float | None]:
        """Ratio and its interval; None where undefined."""
        if self.harm <= 0:
            return None, None, None
        if math.isnan(self.var_harm):
            return self.gain / self.harm, None, None
        low, _ = self.harm_interval(level)
        if low is not None and low <= 0:
            return None, None, None
        value = self.gain / self.harm
        if math.isnan(self.var_gain):
            return value, None, None
        # (gain - r harm)^2 <= t^2 var(gain - r harm): a r^2 - 2 b r + c <= 0, and a > 0 by the
        # test above, whose t is no smaller
        t2 = t_quantile(level, self.freedom) ** 2
        a = self.harm**2 - t2 * self.var_harm
        b = self.gain * self.harm - t2 * self.covariance
        c = self.gain**2 - t2 * self.var_gain
        root = math.sqrt(max(0.0, b * b - a * c))
        # Rounding must not put the value outside, where all seeds agree.
        return value, min((b - root) / a, value), max((b + root) / a, value)


def _paired(clean: np.ndarray, attacked: np.ndarray, defended: np.ndarray) -> _Means:
    gain, harm = attacked - defended, attacked - clean
    n = len(gain)
    spread = np.cov(gain, harm) / n if n > 1 else np.full((2, 2), math.nan)
    return _Means(
        float(gain.mean()),
        float(harm.mean()),
        float(spread[0, 0]),
        float(spread[1, 1]),
        float(spread[0, 1]),
        n - 1,
        n - 1,
    )


def _independent(clean: np.ndarray, attacked: np.ndarray, defended: np.ndarray) -> _Means:
    c, a, d = (float(arm.mean()) for arm in (clean, attacked, defended))
    # the variance of each mean, and its degrees of freedom
    var_c, var_a, var_d = (
        float(arm.var(ddof=1)) / len(arm) if len(arm) > 1 else math.nan
        for arm in (clean, attacked, defended)
    )
    free_c, free_a, free_d = (len(arm) - 1 for arm in (clean, attacked, defended))
    ratio = (a - d) / (a - c) if a > c else 0.0
    # of (A - D) - r (A - C) = (1 - r) A - D + r C
    freedom = _satterthwaite(
        [((1 - ratio) ** 2 * var_a, free_a), (var_d, free_d), (ratio**2 * var_c, free_c)]
    )
    freedom_harm = _satterthwaite([(var_a, free_a), (var_c, free_c)])
    return _Means(
        a - d,
        a - c,
        var_a + var_d,
        var_a + var_c,
        var_a,
        freedom,
        freedom_harm if math.isnan(freedom) else min(freedom, freedom_harm),
    )


def _satterthwaite(parts: list[tuple[float, int]]) -> float:
    """Degrees of freedom of a sum of variances; NaN where one is unknown."""
    total = sum(variance for variance, _ in parts)
    if math.isnan(total):
        return math.nan
    below = sum(variance**2 / free for variance, free in parts)
    return total**2 / below if below > 0 else math.inf


def t_quantile(level: float, freedom: float) -> float:
    """Half the width of a two-sided t interval, in standard errors.

    >>> round(t_quantile(0.95, 2), 3)
    4.303
    """
    from scipy.stats import norm, t

    tail = (1 + level) / 2
    return float(norm.ppf(tail) if math.isinf(freedom) else t.ppf(tail, freedom))


def _checked(name: str, arm: Mapping[int, float]) -> np.ndarray:
    if not arm:
        raise ValueError(f"{name} has no run")
    for seed, figure in arm.items():
        if not math.isfinite(figure):
            raise ValueError(f"{name}: the figure of seed {seed} is {figure}; it must be finite")
    return np.array([arm[seed] for seed in sorted(arm)], dtype=np.float64)


def _ratio(clean: float, attacked: float, defended: float) -> float | None:
    return (attacked - defended) / (attacked - clean) if attacked > clean else None


def _runs(counts: list[int], paired: bool) -> str:
    if paired:
        return f"{counts[0]} seeds, paired" if counts[0] > 1 else "1 seed"
    return f"{', '.join(map(str, counts[:2]))} and {counts[2]} seeds, not paired"


def _verdict(found: Recovery, runs: str, level: float, lost: str, least: float) -> str:
    if found.value is None:
        if 0 < found.harm <= least:
            return f"undefined: a {lost} of {found.harm:.3g} ({runs}) is no more than {least:.3g}"
        if found.harm <= 0 or found.harm_low is None or found.harm_high is None:
            return f"undefined: the attack did no harm; {lost}: {found.harm:.3g} ({runs})"
        return (
            f"undefined: the {lost}, {found.harm:.3g} ({_percent(level)} interval "
            f"{found.harm_low:.3g} to {found.harm_high:.3g}; {runs}), is not larger than the "
            "spread between seeds"
        )
    words = f"{_percent(found.value)} of the {lost} is won back"
    if found.value < 0:
        words = (
            f"nothing of the {lost} is won back: the defence added {_percent(-found.value)} to it"
        )
    if found.low is None or found.high is None:
        return f"{words} ({runs}: no interval)"
    return (
        f"{words} ({_percent(level)} interval {_percent(found.low)} to {_percent(found.high)}; "
        f"{runs})"
    )


def _percent(share: float) -> str:
    return f"{round(100 * share)} %"
