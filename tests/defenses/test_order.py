"""The sorting network: by the 0-1 principle, and against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.defenses import order

SIZES = range(1, 71)


def zeros_and_ones(n, seed=0):
    """Columns of 0 and 1: all of them where n is small, else 2000 with every number of ones."""
    if n <= 10:
        return ((np.arange(2**n) >> np.arange(n)[:, None]) & 1).astype(np.float32)
    rng = np.random.default_rng(seed)
    ones = rng.integers(0, n + 1, 2000)
    return rng.permuted((np.arange(n)[:, None] < ones).astype(np.float32), axis=0)


@pytest.mark.parametrize("n", SIZES)
def test_it_sorts_zeros_and_ones(n):
    """A network of comparators that sorts all columns of 0 and 1 sorts everything."""
    columns = zeros_and_ones(n)
    rows = order.ordered(torch.from_numpy(columns), range(n))
    np.testing.assert_array_equal(torch.stack(rows).numpy(), np.sort(columns, axis=0))


@pytest.mark.parametrize("n", SIZES)
def test_comparators_are_within_bounds_and_few(n):
    comparators = order.batcher(n)
    assert all(0 <= a < b < n for a, b in comparators)
    stages = (n - 1).bit_length()
    assert len(comparators) <= n * stages * (stages + 1) / 4


@pytest.mark.parametrize("n", SIZES)
def test_ranks_and_sets_of_ranks_are_numpys(n):
    """Whatever is left out of the network, what was asked for is right."""
    rng = np.random.default_rng(n)
    columns = rng.normal(size=(n, 200)).round(1)  # ties among them
    expected = np.sort(columns, axis=0)
    for _ in range(4):
        use = rng.integers(0, 3, n)
        ranks, together = np.flatnonzero(use == 1).tolist(), np.flatnonzero(use == 2).tolist()
        rows = order.ordered(torch.from_numpy(columns), ranks, together)
        for rank in ranks:
            np.testing.assert_array_equal(rows[rank].numpy(), expected[rank])
        if together:
            found = np.sort(torch.stack([rows[rank] for rank in together]).numpy(), axis=0)
            np.testing.assert_array_equal(found, expected[together])


@pytest.mark.parametrize("n", SIZES)
def test_zeros_and_ones_through_the_smaller_networks(n):
    """The 0-1 principle holds for each output of the smaller networks, too."""
    columns = zeros_and_ones(n, seed=1)
    expected = np.sort(columns, axis=0).astype(np.float64)
    block = torch.from_numpy(columns)
    np.testing.assert_array_equal(order.median(block).numpy(), np.median(expected, axis=0))
    f = (n - 1) // 3
    trimmed = order.trimmed_mean(block, f).numpy()
    np.testing.assert_allclose(trimmed, expected[f : n - f].mean(0), atol=1e-12)


def test_what_nobody_asks_for_is_not_computed():
    full = len(order.network(50, tuple(range(50))))
    assert full == len(order.batcher(50))
    assert len(order.network(50, (24, 25))) < 0.85 * full
    assert len(order.network(50, (), tuple(range(50)))) == 0
    assert not any(low and high for _, _, low, high in order.network(50, (0,)))


@settings(max_examples=60)
@given(st.integers(1, 24), st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]))
def test_the_values_nearest_to_the_median(n, seed, dtype):
    rng = np.random.default_rng(seed)
    columns = rng.integers(-20, 20, (n, 40)).astype(np.float64)
    block = torch.from_numpy(columns).to(dtype)
    for k in range(1, n + 1):
        expected, low, high = np.array([nearest_mean(column, k) for column in columns.T]).T
        found = order.mean_around_median(block, k)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
        bounds = order.range_around_median(block.sort(0).values, k)
        np.testing.assert_array_equal(bounds[0].numpy(), low)
        np.testing.assert_array_equal(bounds[1].numpy(), high)


def nearest_mean(column, k):
    """Mean, least and greatest of the k values nearest to the median; the smaller of two as far."""
    centre = np.median(column)
    kept = sorted(column, key=lambda value: (abs(value - centre), value))[:k]
    return np.mean(kept), min(kept), max(kept)


def test_the_block_stays_as_it_is():
    block = torch.randn(9, 30)
    before = block.clone()
    order.median(block), order.trimmed_mean(block, 2), order.mean_around_median(block, 5)
    assert torch.equal(block, before)
