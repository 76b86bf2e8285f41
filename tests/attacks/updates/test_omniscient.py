"""Attackers who know the benign updates, against plain numpy from the papers' definitions."""

from __future__ import annotations

import itertools
from statistics import NormalDist

import numpy as np
import pytest
import torch

from fedgan.attacks.omniscient import (
    ALittleIsEnough,
    FangKrum,
    InnerProductManipulation,
    MinMax,
    MinSum,
    z_max,
)
from fedgan.attacks.updates import UpdateAttack
from fedgan.components import available

EVERY = available("fedgan.attacks", UpdateAttack)


def benign_of(rows, attackers):
    return np.delete(rows.double().numpy(), list(attackers), axis=0)


CASES = [(7, (1, 4)), (10, (0, 1, 2)), (4, (3,)), (25, tuple(range(11)))]


@pytest.mark.parametrize(("n", "attackers"), CASES)
@pytest.mark.parametrize("z", [None, 1.5, -0.3])
@pytest.mark.parametrize("sample", [False, True])
def test_a_little_is_enough(drawn, sent, relative, n, attackers, z, sample):
    rows = drawn(n)
    out = sent(ALittleIsEnough(z, sample_std=sample), rows, attackers)
    benign, f = benign_of(rows, attackers), len(attackers)
    if z is None:
        s = n // 2 + 1 - f
        z = NormalDist().inv_cdf((n - f - s) / (n - f))
    expected = np.empty(rows.shape[1])
    for j in range(rows.shape[1]):
        column = benign[:, j]
        mu = sum(column) / len(column)
        variance = sum((x - mu) ** 2 for x in column) / (len(column) - sample)
        expected[j] = mu - z * variance**0.5
    for i in attackers:
        assert relative(out[i], expected) < 1e-6


def test_the_papers_z():
    """Its section 4: of 50 workers 24 are corrupted, so that s = 2, and z = 1.43."""
    assert z_max(50, 24) == pytest.approx(1.43, abs=0.01)
    assert z_max(3, 1) == 0
    assert all(np.isfinite(z_max(n, f)) for n in range(2, 30) for f in range(1, n))


def test_a_little_is_enough_from_the_colluders_own(drawn, sent, relative):
    rows = drawn(8)
    out = sent(ALittleIsEnough(1.0, seen="colluders"), rows, (1, 4, 6))
    own = rows[[1, 4, 6]].double().numpy()
    assert relative(out[1], own.mean(0) - own.std(0)) < 1e-6


@pytest.mark.parametrize(("n", "attackers"), CASES)
def test_inner_product_manipulation(drawn, sent, relative, n, attackers):
    rows = drawn(n)
    out = sent(InnerProductManipulation(0.7), rows, attackers)
    expected = -0.7 * benign_of(rows, attackers).mean(0)
    assert relative(out[attackers[0]], expected) < 1e-6


def direction_of(benign, name):
    mean = benign.mean(0)
    if name == "std":
        return -benign.std(0)
    return -np.sign(mean) if name == "sign" else -mean / np.linalg.norm(mean)


def largest_gamma(fits):
    """By doubling and bisection, as far as floats go."""
    low, high = 0.0, 1e-6
    while fits(high):
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@pytest.mark.parametrize("direction", ["unit", "std", "sign"])
@pytest.mark.parametrize(("n", "attackers"), CASES)
def test_min_max(drawn, sent, relative, n, attackers, direction):
    rows = drawn(n)
    benign = benign_of(rows, attackers)
    farthest = max(np.linalg.norm(a - b) for a, b in itertools.combinations(benign, 2))
    out = sent(MinMax(direction), rows, attackers)[attackers[0]].double().numpy()
    away = max(np.linalg.norm(out - row) for row in benign)
    assert away == pytest.approx(farthest, rel=1e-6)

    mean, p = benign.mean(0), direction_of(benign, direction)
    gamma = largest_gamma(
        lambda g: max(np.linalg.norm(mean + g * p - row) for row in benign) <= farthest
    )
    assert relative(out, mean + gamma * p) < 1e-5


@pytest.mark.parametrize("direction", ["unit", "std", "sign"])
@pytest.mark.parametrize(("n", "attackers"), CASES)
def test_min_sum(drawn, sent, relative, n, attackers, direction):
    rows = drawn(n)
    benign = benign_of(rows, attackers)
    most = max(sum(np.linalg.norm(a - b) ** 2 for b in benign) for a in benign)
    out = sent(MinSum(direction), rows, attackers)[attackers[0]].double().numpy()
    assert sum(np.linalg.norm(out - row) ** 2 for row in benign) == pytest.approx(most, rel=1e-6)

    mean, p = benign.mean(0), direction_of(benign, direction)
    gamma = largest_gamma(
        lambda g: sum(np.linalg.norm(mean + g * p - row) ** 2 for row in benign) <= most
    )
    assert relative(out, mean + gamma * p) < 1e-5


def krum(rows, f):
    """The client that Krum chooses, by loops; of equals the last."""
    scores = []
    for i, row in enumerate(rows):
        squares = sorted(np.sum((row - other) ** 2) for j, other in enumerate(rows) if j != i)
        scores.append(sum(squares[: max(1, len(rows) - f - 2)]))
    return len(rows) - 1 - int(np.argmin(scores[::-1]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "attackers"), [*CASES, (9, (8,)), (12, (0, 1, 2, 3))])
def test_fang_against_krum(drawn, sent, relative, n, attackers, seed):
    rows, f = drawn(n, seed), len(attackers)
    root = rows.shape[1] ** 0.5
    benign = benign_of(rows, attackers)
    sums = []
    for i, row in enumerate(benign):
        others = sorted(np.linalg.norm(row - x) for j, x in enumerate(benign) if j != i)
        sums.append(sum(others[: n - f - 2]))
    strength = min(sums) / (max(1, n - 2 * f - 1) * root)
    strength += max(np.linalg.norm(row) for row in benign) / root
    signs = np.where(benign.mean(0) > 0, 1.0, -1.0)
    while strength >= 1e-5:
        everybody = np.concatenate([np.tile(-strength * signs, (f, 1)), benign])
        if krum(everybody, f) < f:
            break
        strength /= 2
    out = sent(FangKrum(), rows, attackers)
    assert relative(out[attackers[0]], -strength * signs) < 1e-6
    assert (strength >= 1e-5) == (n >= 2 * f + 3) == (FangKrum().doubt(n, f) is None)
    if n >= 2 * f + 3:
        assert krum(out.double().numpy(), f) in attackers
    else:
        assert out[attackers[0]].abs().max() < 1e-5


def test_omniscient_attackers_send_their_own_where_nobody_is_benign(drawn, sent):
    rows = drawn(3)
    for name in ("alie", "ipm", "min-max", "min-sum", "fang-krum"):
        assert torch.equal(sent(EVERY[name](), rows, (0, 1, 2)), rows)


def test_benign_and_colluders_are_told_apart_by_number(drawn, see):
    rows = drawn(5)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.3, 0.1], dtype=torch.float64)
    known = see(rows, (2, 9), weights, clients=(0, 2, 3, 7, 9)).omniscient
    assert known.benign.clients == (0, 3, 7)
    assert torch.equal(known.benign.rows, rows[[0, 2, 3]])
    assert known.benign.weights.tolist() == pytest.approx([1 / 7, 3 / 7, 3 / 7])
    assert known.colluders.clients == (2, 9)
    assert torch.equal(known.colluders.rows, rows[[1, 4]])
