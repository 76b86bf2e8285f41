"""Krum, Multi-Krum, Bulyan, MDA and mixing against their definitions, in plain numpy and loops."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedgan.defenses import aggregate, mda
from fedgan.defenses.distance import NNM, Bulyan, Krum, MultiKrum
from fedgan.defenses.mda import MDA, closest
from fedgan.errors import UserError
from fedgan.updates import UpdateMatrix


def updates_of(n, size, seed, *, whole=False):
    """Rows; of whole numbers, so that distances are exact and often equal, where `whole`."""
    rng = np.random.default_rng(seed)
    if not whole:
        return rng.normal(size=(n, size))
    rows = rng.integers(-3, 4, (n, size)).astype(np.float64)
    rows[rng.integers(n)] = rows[rng.integers(n)]
    rows[(rows == 0).all(1)] = 1  # nothing for the quarantine
    return rows


def squares_of(rows):
    return np.array([[np.sum((a - b) ** 2) for b in rows] for a in rows])


def krum_scores_of(rows, neighbours):
    squares = squares_of(rows)
    scores = []
    for i in range(len(rows)):
        others = sorted(squares[i][j] for j in range(len(rows)) if j != i)
        scores.append(sum(others[: max(neighbours, 1)]))
    return np.array(scores)


def ranking_of(scores):
    return sorted(range(len(scores)), key=lambda i: (scores[i], i))


def multi_krum_of(rows, f, m, fewer=2):
    ranking = ranking_of(krum_scores_of(rows, len(rows) - f - fewer))
    return rows[ranking[:m]].mean(0)


def bulyan_of(rows, f):
    left, chosen = list(range(len(rows))), []
    while len(chosen) < len(rows) - 2 * f:
        ranking = ranking_of(krum_scores_of(rows[left], len(left) - f - 2))
        chosen.append(left.pop(ranking[0]))
    result = []
    for column in rows[chosen].T:
        centre = np.median(column)
        nearest = sorted(column, key=lambda value: (abs(value - centre), value))
        result.append(np.mean(nearest[: len(chosen) - 2 * f]))
    return np.array(result)


def mda_of(distances, k):
    """All subsets, one after the other; the first of the least diameter."""

    def diameter(subset):
        return max((distances[i][j] for i, j in itertools.combinations(subset, 2)), default=0)

    return list(min(itertools.combinations(range(len(distances)), k), key=diameter))


def nnm_of(rows, f):
    squares = squares_of(rows)
    mixed = []
    for i in range(len(rows)):
        nearest = sorted(range(len(rows)), key=lambda j: (j != i, squares[i][j], j))
        mixed.append(rows[nearest[: len(rows) - f]].mean(0))
    return np.array(mixed)


CASES = st.tuples(st.integers(1, 14), st.integers(1, 12), st.integers(0, 10**6), st.booleans())
SIMILAR = {"rtol": 1e-11, "atol": 1e-13}


@settings(max_examples=60)
@given(CASES)
def test_krum_and_multi_krum_are_as_defined(case):
    n, size, seed, whole = case
    assume(n >= 3)
    rows = updates_of(n, size, seed, whole=whole)
    f = seed % ((n - 3) // 2 + 1)
    found = aggregate(rows, "krum", f=f)
    np.testing.assert_allclose(found, multi_krum_of(rows, f, 1), **SIMILAR)
    found = aggregate(rows, "krum", f=f, neighbours="n-f-1")
    np.testing.assert_allclose(found, multi_krum_of(rows, f, 1, fewer=1), **SIMILAR)
    found = aggregate(rows, "multi-krum", f=f)
    np.testing.assert_allclose(found, multi_krum_of(rows, f, n - f), **SIMILAR)
    found = aggregate(rows, "multi-krum", f=f, m=2, neighbours="n-f-1")
    np.testing.assert_allclose(found, multi_krum_of(rows, f, 2, fewer=1), **SIMILAR)


@settings(max_examples=40)
@given(CASES)
def test_bulyan_is_as_defined(case):
    n, size, seed, whole = case
    assume(n >= 3)
    rows = updates_of(n, size, seed, whole=whole)
    f = (n - 3) // 4 - seed % 2 * (n > 6)
    found = aggregate(rows, "bulyan", f=f)
    np.testing.assert_allclose(found, bulyan_of(rows, f), **SIMILAR)


@settings(max_examples=60)
@given(st.integers(1, 10), st.integers(1, 5), st.integers(0, 10**6), st.booleans())
def test_mda_is_as_defined(n, size, seed, whole):
    rows = updates_of(n, size, seed, whole=whole)
    distances = np.sqrt(squares_of(rows))
    for f in range((n + 1) // 2):
        assert closest(distances, n - f) == mda_of(distances, n - f)
    kept = mda_of(distances, n - f)
    np.testing.assert_allclose(aggregate(rows, "mda", f=f), rows[kept].mean(0), **SIMILAR)


@settings(max_examples=40)
@given(CASES)
def test_mixing_is_as_defined(case):
    n, size, seed, whole = case
    rows = updates_of(n, size, seed, whole=whole)
    f = seed % ((n + 1) // 2)
    expected = nnm_of(rows, f)
    chain = [{"name": "nnm", "init_args": {"f": f}}]
    np.testing.assert_allclose(aggregate(rows, chain), expected.mean(0), **SIMILAR)
    found = aggregate(rows, [*chain, "median"])
    np.testing.assert_allclose(found, np.median(expected, axis=0), **SIMILAR)


@settings(max_examples=20)
@given(st.integers(15, 18), st.integers(2, 9), st.integers(0, 10**6))
def test_where_nothing_ties_the_order_of_clients_does_not_matter(n, size, seed):
    rows = updates_of(n, size, seed)
    order = np.random.default_rng(seed + 1).permutation(n)
    found, other = (aggregate(some, "bulyan", f=3) for some in (rows, rows[order]))
    np.testing.assert_allclose(found, other, **SIMILAR)
    distances = np.sqrt(squares_of(rows))
    permuted = distances[order][:, order]
    first, second = closest(distances, n - 5), closest(permuted, n - 5)
    assert distances[np.ix_(first, first)].max() == permuted[np.ix_(second, second)].max()


def test_the_first_of_equal_subsets():
    """On a ring of four, every pair of neighbours is a smallest pair."""
    ring = np.array([[0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1], [1, 2, 1, 0]], dtype=np.float64)
    assert closest(ring, 2) == [0, 1]
    assert closest(ring, 3) == [0, 1, 2]
    assert closest(np.zeros((5, 5)), 3) == [0, 1, 2]


@pytest.mark.parametrize(("n", "f"), [(50, 10), (51, 25), (200, 60)])
def test_separated_clusters_are_found_at_once(n, f):
    rows = updates_of(n, 30, 0)
    rows[-f:] += 4
    rows = rows[np.random.default_rng(1).permutation(n)]
    far = np.flatnonzero(rows.mean(1) > 2)
    start = time.perf_counter()
    kept = closest(np.sqrt(((rows[:, None] - rows) ** 2).sum(2)), n - f)
    assert time.perf_counter() - start < 2
    assert sorted({*kept, *far}) == list(range(n))


@pytest.mark.parametrize(("n", "f"), [(12, 5), (13, 4), (14, 6)])
@pytest.mark.parametrize("size", [2, 100])
def test_where_nobody_stands_out_the_search_is_exact_too(n, f, size):
    rows = updates_of(n, size, n + f)
    distances = np.sqrt(squares_of(rows))
    assert closest(distances, n - f) == mda_of(distances, n - f)


@settings(max_examples=150)
@given(st.integers(5, 11), st.integers(0, 10**6), st.sampled_from([1.0, 2.0, 3.0, 4.0]))
def test_with_few_pairs_far_apart_too(n, seed, degree):
    """Points that are far from `degree` others each, about: rings, trees, and what is between."""
    rng = np.random.default_rng(seed)
    far = np.triu(rng.random((n, n)) < degree / (n - 1), 1)
    distances = 1.0 + (far + far.T)
    np.fill_diagonal(distances, 0)
    for f in range((n + 1) // 2):
        assert closest(distances, n - f) == mda_of(distances, n - f)


def test_where_the_point_with_most_far_from_it_stays():
    """To leave out whoever is far from most, without trying the other way, finds no five here."""
    pairs = [(0, 2), (0, 7), (1, 2), (1, 5), (1, 7), (2, 4), (3, 6), (4, 5), (4, 6), (5, 8)]
    distances = 1.0 - np.eye(9)
    for a, b in [*pairs, (6, 8), (7, 8)]:
        distances[a, b] = distances[b, a] = 2
    assert closest(distances, 5) == mda_of(distances, 5)


def test_a_search_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(mda, "NODES", 20)
    with pytest.raises(UserError) as refused:
        aggregate(updates_of(30, 100, 0), "mda", f=12)
    assert str(refused.value) == (
        "defense: mda found no answer in 20 nodes of its search: n is 30, f is 12; "
        "a smaller f, or multi-krum, is quicker"
    )


@pytest.mark.parametrize(
    ("rule", "parameters", "words"),
    [
        ("krum", {"f": 2}, "defense: krum needs n >= 2f+3: n is 6, f is 2"),
        ("multi-krum", {"f": 2}, "defense: multi-krum needs n >= 2f+3: n is 6, f is 2"),
        ("multi-krum", {"m": 6}, "defense: multi-krum needs m <= n-f: m is 6, n is 6, f is 1"),
        ("multi-krum", {"m": 0}, "rule: init_args.m is 0; it must be at least 1"),
        ("bulyan", {"f": 1}, "defense: bulyan needs n >= 4f+3: n is 6, f is 1"),
        ("mda", {"f": 3}, "defense: mda needs n >= 2f+1: n is 6, f is 3"),
        ("nnm", {"f": 3}, "defense: nnm needs n >= 2f+1: n is 6, f is 3"),
        ("krum", {"f": -1}, "rule: init_args.f is -1; it must be at least 0"),
    ],
)
def test_what_is_refused(rule, parameters, words):
    with pytest.raises(UserError) as refused:
        aggregate(np.ones((6, 2)), rule, **parameters)
    assert str(refused.value) == words


@pytest.mark.parametrize("rule", ["krum", "multi-krum", "bulyan", "mda", "nnm"])
def test_f_is_what_those_who_are_left_bear(rule):
    rows = updates_of(13, 5, 2)
    rows[0] += 10
    with_broken = np.insert(rows, [3, 8], np.nan, axis=0)
    found = aggregate(with_broken, rule, f=3)
    borne = {"bulyan": 2}.get(rule, 3)
    np.testing.assert_array_equal(found, aggregate(rows, rule, f=borne))
    assert not np.array_equal(found, aggregate(rows, rule, f=0))


@pytest.mark.parametrize("rule", ["krum", "multi-krum", "bulyan", "mda", "nnm"])
@pytest.mark.parametrize("usable", [1, 2, 3])
def test_hardly_anybody_left(rule, usable):
    rows = np.full((7, 3), np.nan)
    rows[:usable] = updates_of(usable, 3, 5)
    fewest = {"krum": 3, "multi-krum": 3, "bulyan": 3}.get(rule, 1)
    if usable < fewest:
        with pytest.raises(UserError, match=f"{usable} of 7 updates are usable; .* needs {fewest}"):
            aggregate(rows, rule, f=1)
        return
    found = aggregate(rows, rule, f=1)
    assert (found >= rows[:usable].min(0) - 1e-12).all()
    assert (found <= rows[:usable].max(0) + 1e-12).all()


@pytest.fixture
def with_two_far():
    rows = torch.randn(11, 50, generator=torch.Generator().manual_seed(0))
    rows[[3, 8]] += 10
    return UpdateMatrix.of(rows)


def test_the_verdicts_of_rules_that_choose(with_two_far, server):
    far = torch.zeros(11, dtype=torch.bool)
    far[[3, 8]] = True
    for rule in (Krum(2), MultiKrum(2), MultiKrum(2, m=4), Bulyan(2), MDA(2)):
        verdict = rule(with_two_far, [], server())
        assert torch.equal(verdict.flagged, far), rule.name
        assert set(verdict.scores.topk(2).indices.tolist()) == {3, 8}, rule.name
        assert verdict.weights.sum().item() == pytest.approx(1), rule.name
        assert (verdict.weights[far] == 0).all(), rule.name
        assert verdict.acted, rule.name
    assert (Krum(2)(with_two_far, [], server()).weights > 0).sum() == 1
    assert sorted(MultiKrum(2, m=4)(with_two_far, [], server()).weights)[-4:] == [0.25] * 4
    assert (MDA(2)(with_two_far, [], server()).weights[~far] == 1 / 9).all()


def test_after_drop_outs_no_more_than_n_less_f_are_joined(with_two_far, server):
    verdict = MultiKrum(2, m=10)(with_two_far, [], server())
    assert (verdict.weights > 0).sum() == 9


def test_scores_are_krums(with_two_far, server):
    rows = with_two_far.rows.double().numpy()
    for rule in (Krum(2), MultiKrum(2), Bulyan(2)):
        scores = rule(with_two_far, [], server()).scores
        np.testing.assert_allclose(scores, krum_scores_of(rows, 11 - 2 - 2), rtol=1e-8)


def test_mixing_is_a_matrix_of_coefficients(with_two_far, server):
    mixed = NNM(2)(with_two_far, [], server())
    assert mixed.rows is with_two_far.rows
    assert torch.equal(mixed.mix.count_nonzero(1), torch.full((11,), 9))
    assert (mixed.mix.diagonal() > 0).all()
    rows = with_two_far.rows.double().numpy()
    np.testing.assert_allclose(mixed.take(torch.arange(50)), nnm_of(rows, 2), rtol=1e-12)


def test_equal_updates_count_themselves_first(server):
    rows = torch.ones(5, 3)
    mix = NNM(2)(UpdateMatrix.of(rows), [], server()).mix
    assert (mix.diagonal() > 0).all()
    assert mix[4].nonzero().flatten().tolist() == [0, 1, 4]
