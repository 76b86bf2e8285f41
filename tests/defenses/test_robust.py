"""Medians and trimmed means against their definitions, in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedgan.defenses import aggregate
from fedgan.defenses.robust import COORDINATES, RFA, Meamed, Median, TrimmedMean
from fedgan.errors import UserError
from fedgan.updates import UpdateMatrix


def updates_of(n, size, seed, *, ties=False):
    """Rows, some of them the same or nearly so where there are to be `ties`."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, size))
    if ties:
        rows = rows.round(0) + 5
        rows[rng.integers(n)] = rows[rng.integers(n)]
        rows[rng.integers(n)] = rows[rng.integers(n)] * (1 + 1e-9)
    return rows


def median_of(rows):
    result = []
    for column in rows.T:
        values = sorted(column)
        n = len(values)
        result.append(values[n // 2] if n % 2 else (values[n // 2 - 1] + values[n // 2]) / 2)
    return np.array(result)


def trimmed_mean_of(rows, f):
    return np.array([np.mean(sorted(column)[f : len(column) - f]) for column in rows.T])


def meamed_of(rows, f):
    result = []
    for column, centre in zip(rows.T, median_of(rows), strict=True):
        nearest = sorted(column, key=lambda value: (abs(value - centre), value))
        result.append(np.mean(nearest[: len(column) - f]))
    return np.array(result)


CASES = st.tuples(st.integers(1, 17), st.integers(1, 30), st.integers(0, 10**6), st.booleans())


@settings(max_examples=40)
@given(CASES, st.sampled_from([np.float32, np.float64]))
def test_by_coordinate_is_as_defined(case, dtype):
    n, size, seed, ties = case
    rows = updates_of(n, size, seed, ties=ties).astype(dtype)
    exact = rows.astype(np.float64)
    close = {"rtol": 1e-6, "atol": 1e-7} if dtype == np.float32 else {"rtol": 1e-12, "atol": 1e-14}
    np.testing.assert_allclose(aggregate(rows, "median"), median_of(exact), **close)
    f = seed % ((n + 1) // 2)
    found = aggregate(rows, "trimmed-mean", f=f)
    np.testing.assert_allclose(found, trimmed_mean_of(exact, f), **close)
    found = aggregate(rows, "meamed", f=f)
    np.testing.assert_allclose(found, meamed_of(exact, f), **close)
    assert found.dtype == dtype


def test_of_two_values_as_far_from_the_median_the_smaller_is_kept():
    rows = np.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    assert aggregate(rows, "meamed", f=1).item() == np.mean([1, 2, 3, 4])
    assert aggregate(rows[:4], "meamed", f=1).item() == np.mean([1, 2, 3])


@pytest.mark.parametrize(
    ("n", "share", "trimmed"),
    [(10, 0.3, 3), (10, 0.0, 0), (9, 0.49, 4), (100, 0.29, 29), (5, 0.1, 0)],
)
def test_a_share_to_trim(n, share, trimmed):
    """0.29 x 100 is 28.999999999999996 in a computer, and means 29."""
    rows = updates_of(n, 6, n)
    np.testing.assert_allclose(
        aggregate(rows, "trimmed-mean", share=share), trimmed_mean_of(rows, trimmed), atol=1e-14
    )


def test_a_share_just_below_a_half_leaves_a_value():
    rows = updates_of(10, 6, 0)
    found = aggregate(rows, "trimmed-mean", share=0.49999999999)
    np.testing.assert_allclose(found, np.median(rows, axis=0), atol=1e-14)


@pytest.mark.parametrize("rule", ["trimmed-mean", "meamed"])
def test_with_nobody_to_stand_it_is_the_mean(rule):
    rows = updates_of(6, 5, 1)
    np.testing.assert_allclose(aggregate(rows, rule, f=0), rows.mean(0), atol=1e-14)


@pytest.mark.parametrize("rule", ["trimmed-mean", "meamed"])
def test_f_stays_where_some_are_in_quarantine(rule):
    """Those who are there may all of the f be; and shares are of those who are left."""
    rows = updates_of(9, 5, 2)
    with_broken = rows.copy()
    with_broken[[3, 4]] = np.nan
    left = np.delete(rows, [3, 4], axis=0)
    np.testing.assert_array_equal(aggregate(with_broken, rule, f=4), aggregate(left, rule, f=3))
    np.testing.assert_array_equal(aggregate(with_broken, rule, f=1), aggregate(left, rule, f=1))
    share = aggregate(with_broken, "trimmed-mean", share=3 / 9)
    np.testing.assert_array_equal(share, aggregate(left, "trimmed-mean", f=2))


@pytest.mark.parametrize("rule", ["trimmed-mean", "meamed", "multi-krum", "mda", "dnc"])
def test_a_benign_client_that_breaks_lets_no_attacker_through(rule):
    rows = 1 + 0.1 * updates_of(11, 5, 2)
    rows[[2, 5]] = -1e4
    rows[7] = np.nan
    assert np.abs(aggregate(rows, rule, f=2) - 1).max() < 0.5


@pytest.mark.parametrize(
    ("rule", "parameters", "words"),
    [
        ("trimmed-mean", {"f": 2}, "defense: trimmed-mean needs n >= 2f+1: n is 4, f is 2"),
        ("meamed", {"f": 2}, "defense: meamed needs n >= 2f+1: n is 4, f is 2"),
        ("meamed", {"f": -1}, "rule: init_args.f is -1; it must be at least 0"),
        ("trimmed-mean", {"share": 0.5}, "rule: init_args.share is 0.5; it must be in [0, 0.5)"),
        ("rfa", {"nu": 0.0}, "rule: init_args.nu is 0.0; it must be above 0"),
        ("rfa", {"iterations": 0}, "rule: init_args.iterations is 0; it must be at least 1"),
        ("rfa", {"tolerance": -1.0}, "rule: init_args.tolerance is -1.0; it must be at least 0"),
    ],
)
def test_what_is_refused(rule, parameters, words):
    with pytest.raises(UserError) as refused:
        aggregate(np.ones((4, 2)), rule, **parameters)
    assert str(refused.value) == words


def test_how_often_a_client_was_counted(server):
    rows = torch.tensor([[1.0, 5.0, 1.0], [2.0, 6.0, 2.0], [3.0, 1.0, 3.0], [9.0, 7.0, 3.0]])
    updates = UpdateMatrix.of(rows)
    middle = Median()(updates, [], server())
    assert middle.weights.tolist() == pytest.approx([1 / 6, 4 / 9, 5 / 18, 1 / 9])
    trimmed = TrimmedMean(1)(updates, [], server())
    assert trimmed.weights.tolist() == pytest.approx(middle.weights.tolist())
    around = Meamed(1)(updates, [], server())
    assert around.weights.tolist() == pytest.approx([2 / 9, 1 / 3, 2 / 9, 2 / 9])


@pytest.mark.parametrize("rule", [Median(), TrimmedMean(3), Meamed(3)])
def test_an_outlier_weighs_little_and_scores_high(rule, server):
    rows = torch.randn(11, 5000, generator=torch.Generator().manual_seed(0))
    rows[4] += 5
    assert rows.shape[1] > COORDINATES
    verdict = rule(UpdateMatrix.of(rows), [], server())
    assert verdict.weights.sum().item() == pytest.approx(1)
    assert verdict.weights.argmin() == verdict.scores.argmax() == 4
    distances = (rows.double() - verdict.aggregate).norm(dim=1)
    assert verdict.scores.tolist() == pytest.approx(distances.tolist(), rel=0.1)
    assert not verdict.flagged.any()


def pull(rows, point, shares):
    """The sum of unit vectors towards the rows: nothing, at their geometric median."""
    ways = rows - point
    return shares @ (ways / np.linalg.norm(ways, axis=1, keepdims=True))


@settings(max_examples=30)
@given(st.integers(3, 15), st.integers(2, 40), st.integers(0, 10**6), st.floats(0, 3))
def test_nothing_pulls_at_the_geometric_median(n, size, seed, far):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, size))
    rows[0] += 10**far
    shares = rng.uniform(0.5, 1.5, n)
    shares /= shares.sum()
    point = aggregate(rows, "rfa", weights=shares, iterations=20_000, tolerance=1e-13)
    distances = np.linalg.norm(rows - point, axis=1)
    nearest = distances.argmin()
    others = np.arange(n) != nearest
    left = np.linalg.norm(pull(rows[others], rows[nearest], shares[others]))
    assume(abs(left - shares[nearest]) > 0.01)  # or it takes many more iterations
    if left < shares[nearest]:  # the median is this very update
        assert distances[nearest] <= 1e-6 * np.median(distances)
    else:
        assert np.linalg.norm(pull(rows, point, shares)) < 1e-9


@pytest.mark.parametrize("far", [1.0, 1e3, 1e5])
def test_the_geometric_median_is_scipys(far):
    """The optimum, by Newton's method from a start nearby, to 1e-9 of the spread."""
    from scipy.optimize import root

    rng = np.random.default_rng(5)
    rows = rng.normal(size=(9, 6))
    rows[7:] += far
    uniform = np.full(9, 1 / 9)
    found = aggregate(rows, "rfa", iterations=1000, tolerance=0.0)
    best = root(lambda point: pull(rows, point, uniform), found + 1e-3, tol=1e-14).x
    assert np.linalg.norm(found - best) < 1e-9
    by_default = aggregate(rows, "rfa")
    assert np.linalg.norm(by_default - best) < 1e-7


def test_weiszfelds_first_steps():
    """Step by step as in the paper, on the vectors themselves."""
    rows = updates_of(7, 4, 3)
    rows[6] += 100
    shares = np.arange(1, 8) / 28
    point = shares @ rows
    for steps in range(1, 6):
        pulls = shares / np.linalg.norm(rows - point, axis=1)
        point = pulls @ rows / pulls.sum()
        found = aggregate(rows, "rfa", weights=shares, iterations=steps)
        np.testing.assert_allclose(found, point, rtol=1e-12)


def test_where_half_the_clients_agree_it_is_with_them():
    rows = updates_of(9, 4, 4)
    rows[:5] = rows[0]
    rows[8] += 1e6
    found = aggregate(rows, "rfa")
    assert np.linalg.norm(found - rows[0]) < 1e-5
    rows[:] = rows[0]
    np.testing.assert_allclose(aggregate(rows, "rfa"), rows[0], rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_small_updates_have_a_geometric_median_too(scale):
    rows = updates_of(9, 4, 4)
    np.testing.assert_allclose(
        aggregate(rows * scale, "rfa"), aggregate(rows, "rfa") * scale, rtol=1e-9
    )


def test_four_in_ten_far_off_do_not_hold_it(server):
    """The reason for more than the paper's 4 iterations."""
    rows = torch.randn(10, 50, generator=torch.Generator().manual_seed(1))
    rows[6:] += 1e4
    updates = UpdateMatrix.of(rows)
    honest = rows[:6].double().mean(0)

    def off(iterations):
        verdict = RFA(iterations)(updates, [], server())
        return (verdict.joined(updates) - honest).norm().item()

    assert off(1000) < 20
    assert off(4) > 1000


def test_weights_by_images_or_the_same_for_all(server):
    rows = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    updates = UpdateMatrix.of(rows, torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64))
    by_images = RFA()(updates, [], server())
    assert by_images.joined(updates).norm() < 1e-5
    assert by_images.scores.tolist() == pytest.approx([0, 4, 3], abs=1e-5)
    same = RFA(weights="uniform")(updates, [], server())
    point = same.joined(updates).double().numpy()
    assert np.linalg.norm(pull(rows.double().numpy(), point, np.full(3, 1 / 3))) < 1e-6


def test_after_mixing_the_geometric_median_is_of_the_mixed(server):
    rows = torch.randn(6, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mix = torch.rand(6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    mixed = UpdateMatrix.of(rows).mixed(mix)
    found = RFA()(mixed, [], server()).joined(mixed)
    np.testing.assert_allclose(found, aggregate(mix @ rows, "rfa"), atol=1e-9)
