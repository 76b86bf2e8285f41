"""Means, deviations, paired intervals and Holm's correction, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedgan.comparison.spread import Spread, holm, judged, paired_difference


def test_a_spread_is_the_sample_deviation():
    found = Spread.of({3: 14.0, 1: 10.0, 2: 12.0})
    assert (found.mean, found.std, found.n) == (12.0, 2.0, 3)
    assert list(found.by_seed) == [1, 2, 3]
    assert Spread.of({1: 5.0}).std is None
    assert Spread.of({}) is None


def test_the_paired_interval_by_hand():
    # differences -1, -2, -3: mean -2, deviation 1, error 1 / sqrt 3; t(0.975, 2) = 4.30265
    found = paired_difference(
        Spread.of({1: 9.0, 2: 8.0, 3: 7.0, 4: 99.0}), Spread.of({1: 10.0, 2: 10.0, 3: 10.0})
    )
    half = 4.30265273 / math.sqrt(3)
    assert (found.mean, found.n) == (-2.0, 3)
    assert (found.low, found.high) == pytest.approx((-2 - half, -2 + half))
    assert found.p == pytest.approx(stats.ttest_rel([9, 8, 7], [10, 10, 10]).pvalue)


def test_pairing_cancels_what_a_seed_does_to_both():
    ours = Spread.of({1: 10.0, 2: 50.0, 3: 90.1})
    theirs = Spread.of({1: 11.0, 2: 51.0, 3: 91.0})
    found = paired_difference(ours, theirs)
    assert found.high < 0


def test_one_seed_shows_nothing():
    found = paired_difference(Spread.of({1: 1.0}), Spread.of({1: 100.0, 2: 100.0}))
    (found,) = judged([found], less_is_better=True)
    assert (found.mean, found.low, found.p, found.p_holm) == (-99.0, None, None, None)
    assert found.shown == "one seed"
    assert paired_difference(Spread.of({1: 1.0}), Spread.of({2: 1.0})) is None


def test_equal_runs_are_no_difference():
    same = Spread.of({1: 3.0, 2: 4.0})
    (found,) = judged([paired_difference(same, same)], less_is_better=True)
    assert (found.p, found.p_holm, found.shown) == (1.0, 1.0, "nothing shown")


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, and never falling
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni(ps):
    for p, adjusted in zip(ps, holm(ps), strict=True):
        assert p <= adjusted <= min(1.0, len(ps) * p) + 1e-12


def test_what_stands_alone_may_not_stand_among_many():
    better = paired_difference(Spread.of({1: 8.0, 2: 8.1}), Spread.of({1: 10.0, 2: 10.0}))
    noise = paired_difference(Spread.of({1: 9.0, 2: 11.0}), Spread.of({1: 10.0, 2: 10.3}))
    assert 0.01 < better.p < 0.05
    assert better.high < 0
    (alone,) = judged([better], less_is_better=True)
    assert alone.shown == "better"
    among = judged([better, None, noise, noise, noise], less_is_better=True)
    assert among[0].shown == "nothing shown"
    assert among[0].p_holm == pytest.approx(4 * better.p)
    assert among[1] is None


@pytest.mark.parametrize(("less", "shown"), [(True, "worse"), (False, "better")])
def test_which_way_is_better(less, shown):
    more = paired_difference(Spread.of({1: 8.0, 2: 8.1}), Spread.of({1: 1.0, 2: 1.0}))
    assert judged([more], less_is_better=less)[0].shown == shown


def test_a_step_in_every_seed_is_no_difference():
    def share(*counts):
        return Spread.of({seed: count / 300 for seed, count in enumerate(counts)}, step=1 / 300)

    (found,) = judged([paired_difference(share(1, 1, 2), share(0, 0, 1))], less_is_better=True)
    # t = 1 / (1 / sqrt 6 / sqrt 3), of 2 degrees of freedom
    assert found.p == pytest.approx(2 * stats.t.sf(math.sqrt(18), 2))
    assert (found.shown, found.low < 0) == ("nothing shown", True)
    (all_of_it,) = judged([paired_difference(share(0, 0), share(300, 300))], less_is_better=True)
    assert (all_of_it.shown, all_of_it.p > 0) == ("better", True)
    apart = share(30, 60, 40), share(200, 210, 190)
    plain = [Spread.of(one.by_seed) for one in apart]
    assert paired_difference(*apart) == paired_difference(*plain)  # where they spread by more
