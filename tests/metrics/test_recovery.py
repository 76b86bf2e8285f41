"""Recovery: hand-computed and planted cases, invariances, and whether the interval covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import t

from fedgan.metrics.recovery import leakage_removed, recovery


def arms(*figures, seeds=None):
    """A mapping for each list of figures, with the seeds 0, 1, ... unless given."""
    return [dict(zip(seeds or range(len(arm)), arm, strict=True)) for arm in figures]


def test_one_seed_is_the_formula_and_has_no_interval():
    found = recovery({7: 10.0}, {7: 30.0}, {7: 15.0})
    assert found.value == 0.75
    assert found.low is found.high is found.harm_low is found.harm_high is None
    assert found.by_seed == {7: 0.75}
    assert found.harm == 20.0
    assert found.verdict == "75 % of the distance lost is won back (1 seed: no interval)"


def test_the_ratio_is_of_means_and_not_a_mean_of_ratios():
    found = recovery(*arms([0, 0, 0, 0], [10, 10, 10.2, 9.8], [5, 5, 0, 9.8]))
    assert found.value == pytest.approx((40 - 19.8) / 40)
    assert found.by_seed == pytest.approx({0: 0.5, 1: 0.5, 2: 1.0, 3: 0.0})


def test_all_of_it_nothing_and_worse():
    clean, attacked = arms([1.0, 1.1, 0.9], [5.0, 5.2, 4.8])
    assert recovery(clean, attacked, clean).value == pytest.approx(1)
    assert recovery(clean, attacked, attacked).value == pytest.approx(0)
    worse = recovery(clean, attacked, {seed: figure + 4 for seed, figure in attacked.items()})
    assert worse.value == pytest.approx(-1)
    words = "nothing of the distance lost is won back: the defence added 100 % to it"
    assert worse.verdict.startswith(words)


def in_fieller(r, gain, harm, critical):
    """By the definition: whether the mean of gain - r harm does not differ from 0."""
    z = gain - r * harm
    return abs(z.mean()) <= critical * z.std(ddof=1) / math.sqrt(len(z))


def test_the_paired_interval_is_all_that_a_t_test_does_not_refute():
    rng = np.random.default_rng(3)
    base = rng.normal(10, 3, 5)
    clean, attacked, defended = (base + rng.normal(x, 1, 5) for x in (0, 9, 3))
    found = recovery(*arms(clean, attacked, defended))
    gain, harm, critical = attacked - defended, attacked - clean, t.ppf(0.975, 4)
    for end, outwards in ((found.low, -1), (found.high, 1)):
        assert in_fieller(end - outwards * 1e-9, gain, harm, critical)
        assert not in_fieller(end + outwards * 1e-9, gain, harm, critical)
    assert found.low < found.value < found.high


def test_harm_within_the_spread_is_undefined():
    found = recovery(*arms([10, 12, 11], [11, 11.5, 11.2], [10, 11, 12]))
    assert found.value is found.low is found.high is None
    assert found.harm_low < 0 < found.harm_high
    assert "is not larger than the spread between seeds" in found.verdict
    assert "undefined" in found.verdict
    assert set(found.by_seed) == {0, 1, 2}
    assert found.by_seed[1] is None  # no harm with this seed


@pytest.mark.parametrize("attacked", [[8.0, 9.0, 10.0], [10.0, 11.0, 12.0]])
def test_no_harm_at_all_is_undefined(attacked):
    found = recovery(*arms([10.0, 11.0, 12.0], attacked, [10.0, 11.0, 12.0]))
    assert found.value is None
    assert "undefined: the attack did no harm" in found.verdict


def test_seeds_that_differ_are_not_paired():
    clean, attacked = {1: 10.0, 2: 14.0, 3: 12.0}, {4: 30.0, 5: 34.0, 6: 32.0}
    found = recovery(clean, attacked, {7: 17.0, 8: 15.0})
    assert not found.paired
    assert found.by_seed == {}
    assert found.value == pytest.approx(16 / 20)
    assert found.low < 0.8 < found.high
    assert "3, 3 and 2 seeds, not paired" in found.verdict
    some = recovery(clean, attacked | {1: 31.0}, clean)
    assert not some.paired
    assert some.by_seed == pytest.approx({1: 1.0})


def test_pairing_makes_use_of_what_a_seed_does_to_all_arms():
    seeds = np.array([0.0, 8.0, 20.0, 11.0])
    figures = (seeds, seeds + np.array([10, 10.5, 9.5, 10]), seeds + np.array([2, 2.1, 1.8, 2]))
    paired = recovery(*arms(*figures))
    clean, attacked, defended = arms(*figures)
    apart = recovery(clean, {s + 10: x for s, x in attacked.items()}, defended)
    assert paired.high - paired.low < 0.2
    assert apart.value is None


@pytest.mark.parametrize("who", ["clean", "attacked", "defended"])
def test_an_arm_with_one_seed_has_no_spread(who):
    given_ = {"clean": {1: 1.0, 2: 1.2}, "attacked": {3: 5.0, 4: 5.1}, "defended": {5: 2.0, 6: 2.1}}
    given_[who] = {9: given_[who].popitem()[1]}
    found = recovery(**given_)
    assert found.value == pytest.approx(0.76, abs=0.05)
    assert found.low is None
    assert "no interval" in found.verdict


def test_runs_that_agree_to_the_bit():
    found = recovery(*arms([1.0] * 3, [2.0] * 3, [1.25] * 3))
    assert (found.value, found.low, found.high) == (0.75, 0.75, 0.75)
    apart = recovery({1: 1.0, 2: 1.0}, {3: 2.0, 4: 2.0}, {5: 1.25, 6: 1.25})
    assert (apart.value, apart.low, apart.high) == (0.75, 0.75, 0.75)


@pytest.mark.parametrize(
    ("clean", "level", "words"),
    [
        ({}, 0.95, "clean has no run"),
        ({4: math.nan}, 0.95, "clean: the figure of seed 4 is nan"),
        ({4: math.inf}, 0.95, "must be finite"),
        ({4: 1.0}, 1.0, "level is 1.0"),
    ],
)
def test_bad_input(clean, level, words):
    with pytest.raises(ValueError, match=words):
        recovery(clean, {4: 2.0}, {4: 1.5}, level=level)


figure = st.floats(0, 100).map(lambda x: round(x, 3))
arm = st.lists(figure, min_size=2, max_size=5)


@given(
    st.integers(1, 5).flatmap(lambda n: st.tuples(*[st.lists(figure, min_size=n, max_size=n)] * 3)),
    st.floats(0.1, 9),
    st.floats(-50, 50),
    st.booleans(),
)
def test_units_and_a_common_offset_do_not_matter(figures, scale, offset, pair):
    def of(figures):
        clean, attacked, defended = arms(*figures)
        return recovery(
            clean, attacked if pair else {s + 9: x for s, x in attacked.items()}, defended
        )

    one, other = of(figures), of([[scale * x + offset for x in arm] for arm in figures])
    assume(one.harm_low is None or abs(one.harm_low) > 1e-6)
    assume(abs(one.harm) > 1e-6)
    for name in ("value", "low", "high"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert b == pytest.approx(a, rel=1e-4, abs=1e-4)


@given(arm, arm, arm)
def test_a_wider_level_is_a_wider_interval_about_the_value(clean, attacked, defended):
    given_ = arms(clean, attacked, defended)
    wide, narrow = recovery(*given_, level=0.99), recovery(*given_, level=0.5)
    if wide.value is None:
        return
    assert wide.low <= narrow.low <= narrow.value == wide.value <= narrow.high <= wide.high


def covered(truth, paired, runs, draw, seed):
    """Shares of simulated triples of arms whose interval holds the truth, or is undefined."""
    rng = np.random.default_rng(seed)
    inside = undefined = 0
    for _ in range(runs):
        clean, attacked, defended = arms(*draw(rng))
        if not paired:
            attacked = {s + 100: x for s, x in attacked.items()}
        found = recovery(clean, attacked, defended)
        undefined += found.value is None
        inside += found.value is not None and found.low <= truth <= found.high
    return inside / runs, undefined / runs


@pytest.mark.parametrize("n", [3, 5])
def test_the_paired_interval_covers(n):
    """Seeds move all arms together (sd 3), and each by itself (sd 1); the harm is 12, 3/4 of it
    is won back. 95 % +- 3 standard errors of 1500 draws."""

    def draw(rng):
        common = rng.normal(20, 3, n)
        return [common + rng.normal(shift, 1, n) for shift in (0, 12, 3)]

    inside, undefined = covered(0.75, True, 1500, draw, n)
    assert undefined < 0.01
    assert 0.933 < inside / (1 - undefined) < 0.967


def test_the_interval_of_arms_that_are_not_paired_covers():
    def draw(rng):
        return [
            rng.normal(20 + shift, sd, n) for shift, sd, n in ((0, 1, 4), (12, 2, 5), (3, 1, 6))
        ]

    inside, undefined = covered(0.75, False, 1500, draw, 1)
    assert undefined < 0.01
    assert 0.93 < inside / (1 - undefined) < 0.98  # Satterthwaite's degrees are approximate


def test_an_attack_without_harm_is_seldom_given_a_recovery():
    """The two-sided test of the harm lets 2.5 % of them pass."""

    def draw(rng):
        common = rng.normal(20, 3, 3)
        return [common + rng.normal(0, 1, 3) for _ in range(3)]

    _, undefined = covered(0.0, True, 1500, draw, 2)
    assert 0.963 < undefined < 0.987


@pytest.mark.parametrize("seeds", [1, 3])
def test_of_a_leakage_that_may_be_false_alarms_nothing_is_won_back(seeds):
    clean, attacked, defended = (dict.fromkeys(range(seeds), x) for x in (0.0, 0.002, 0.0))
    found = leakage_removed(clean, attacked, defended)
    assert found.value is found.low is found.high is None
    assert found.verdict.startswith("undefined: a leakage of 0.002 (")
    assert found.verdict.endswith(") is no more than 0.01")
    assert leakage_removed(clean, dict.fromkeys(clean, 0.02), defended).value == 1


def test_leakage_removed():
    found = leakage_removed({1: 0.0, 2: 0.0}, {1: 0.99, 2: 0.99}, {1: 0.0, 2: 0.02})
    assert found.value == pytest.approx(0.98 / 0.99)
    assert "of the leakage is won back" in found.verdict
