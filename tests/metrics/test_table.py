"""What differences between arms show, over seeds and over many comparisons."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from fedgan.metrics._table import Comparison, judged


def test_the_judgement_is_that_of_scipy() -> None:
    drawn = np.random.default_rng(0).normal(0.3, 1, (6, 4))
    rows, words = judged([Comparison(f"{i}", "auc", list(one)) for i, one in enumerate(drawn)])
    assert len(words) == 7
    for row, one in zip(rows, drawn, strict=True):
        theirs = ttest_1samp(one, 0)
        assert row["p"] == pytest.approx(theirs.pvalue)
        assert (row["low"], row["high"]) == pytest.approx(tuple(theirs.confidence_interval()))
    ordered = sorted(row["p"] for row in rows)
    assert min(row["p_holm"] for row in rows) == pytest.approx(min(1, 6 * ordered[0]))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_without_any_effect_few_evaluations_name_a_gain_or_a_loss(seeds: int) -> None:
    """Of 200 evaluations of 5 comparisons some 10 at most do; a spread of 1 would name 140."""
    drawn = np.random.default_rng(seeds).normal(0, 0.01, (200, 5, seeds))
    named = sum(
        any(row["shown"] for row in judged([Comparison("x", "auc", list(one)) for one in each])[0])
        for each in drawn
    )
    assert 2 <= named <= 18


def test_what_is_large_is_named_and_equal_differences_are_not() -> None:
    rows, words = judged(
        [
            Comparison("more", "auc", [0.20, 0.21, 0.22]),
            Comparison("less", "auc", [-0.20, -0.21, -0.22]),
            Comparison("equal", "auc", [0.8 - 0.75, 0.9 - 0.85, 0.3 - 0.25]),
            Comparison("wide", "auc", [0.1, 0.2, 0.3]),
        ]
    )
    assert [row["shown"] for row in rows] == ["a gain", "a loss", None, None]
    assert words[1].endswith("a gain")
    assert words[3] == "equal: auc +0.050 (the same with all 3 seeds): nothing shown"
    assert judged([]) == ([], [])
