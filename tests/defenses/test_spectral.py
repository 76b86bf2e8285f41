"""DnC against algorithm 2 of its paper with numpy's SVD."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.defenses.base import ServerMeans
from fedgan.defenses.draws import coordinates
from fedgan.defenses.spectral import DnC, projections
from fedgan.errors import UserError
from fedgan.updates import UpdateMatrix


def rows(n=7, size=80, seed=0):
    return np.random.default_rng(seed).normal(size=(n, size)).astype("f4")


def planted(n=10, f=3, size=400, seed=0, shift=1.0):
    values = rows(n, size, seed)
    values[:f] += shift * rows(1, size, seed + 1)
    return values


def matrix(values):
    return UpdateMatrix.of(torch.from_numpy(values))


def means(size=80, round=1, **others):
    return ServerMeans(round, torch.zeros(size), **others)


def one_filter(values, out):
    """The clients that one iteration keeps, and all squared projections."""
    centred = values.astype("f8") - values.astype("f8").mean(0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    squares = (centred @ direction) ** 2
    return set(np.argsort(squares)[: len(values) - out].tolist()), squares


def test_coordinates_are_drawn_once_each_and_ascend():
    drawn = coordinates(1000, 300, torch.Generator().manual_seed(0))
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert len(drawn) == 300
    assert drawn.double().mean().item() == pytest.approx(500, abs=5 * 1000 / (12 * 300) ** 0.5)


@settings(max_examples=60)
@given(n=st.integers(1, 12), size=st.integers(1, 90), seed=st.integers(0, 10**6))
def test_projections_are_those_of_the_svd(n, size, seed):
    values = rows(n, size, seed)
    expected = one_filter(values, 0)[1]
    found = projections(torch.from_numpy(values)).numpy()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9 * (1 + expected.max()))


@settings(max_examples=60)
@given(
    f=st.integers(0, 4),
    more=st.integers(1, 6),
    c=st.sampled_from([0.5, 1.0, 1.5]),
    seed=st.integers(0, 10**6),
)
def test_one_iteration_on_all_coordinates(f, more, c, seed):
    n = 2 * f + more
    values = rows(n, seed=seed)
    verdict = DnC(f, c, 1)(matrix(values), [], means())
    kept, squares = one_filter(values, int(c * f))
    assert set(verdict.weights.nonzero().flatten().tolist()) == kept
    assert set((~verdict.flagged).nonzero().flatten().tolist()) == kept
    joined = verdict.joined(matrix(values)).numpy()
    assert joined == pytest.approx(values[sorted(kept)].mean(0), rel=1e-5, abs=1e-6)
    if n > 1:
        assert verdict.scores.numpy() == pytest.approx(squares / squares.sum(), abs=1e-9)


def test_only_who_is_never_left_out_is_averaged():
    values, server = planted(shift=0.5), means(400, round=3, seed=5)
    verdict = DnC(3, 1.0, 4, coordinates=20)(matrix(values), [], server)
    rng, kept, drawn = server.rng("dnc"), set(range(10)), []
    for _ in range(4):
        drawn.append(torch.randperm(400, generator=rng)[:20].sort().values.numpy())
        kept &= one_filter(values[:, drawn[-1]], 3)[0]
    assert 0 < len(kept) < 7  # the draws differ, and so do those left out
    assert set((~verdict.flagged).nonzero().flatten().tolist()) == kept
    assert len({tuple(one) for one in drawn}) == 4


def test_where_all_are_left_out_at_some_time_those_left_out_least_often_stay():
    values = rows(5, 200)
    verdict = DnC(2, 1.0, 9, coordinates=4)(matrix(values), [], means(200))
    rng, times = means(200).rng("dnc"), np.zeros(5)
    for _ in range(9):
        columns = torch.randperm(200, generator=rng)[:4].sort().values.numpy()
        times[sorted(set(range(5)) - one_filter(values[:, columns], 2)[0])] += 1
    assert times.min() > 0
    assert verdict.flagged.tolist() == (times > times.min()).tolist()
    assert verdict.weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("coordinates", [100, 10000])
def test_a_planted_minority_is_left_out(coordinates):
    values = planted(shift=2.0)
    verdict = DnC(3, coordinates=coordinates)(matrix(values), [], means(400))
    assert verdict.flagged.tolist() == [True] * 3 + [False] * 7
    assert verdict.scores[:3].min() > verdict.scores[3:].max()
    assert verdict.acted


def test_the_order_of_clients_does_not_matter():
    values, order = planted(size=80), np.random.default_rng(3).permutation(10)
    one, other = (DnC(3, coordinates=40)(matrix(x), [], means()) for x in (values, values[order]))
    assert torch.equal(one.flagged[torch.from_numpy(order)], other.flagged)


@pytest.mark.parametrize(("scale", "shift"), [(1e-4, 0.0), (-3.0, 0.0), (1.0, 50.0)])
def test_scaled_and_shifted_updates_lose_the_same_clients(scale, shift):
    values = planted(size=80).astype("f8")
    changed = scale * values + shift * rows(1, seed=9)
    one, other = (DnC(3, coordinates=40)(matrix(x), [], means()) for x in (values, changed))
    assert torch.equal(one.flagged, other.flagged)
    assert torch.allclose(one.scores, other.scores, atol=1e-8)


def test_equal_updates_are_their_own_aggregate():
    values = np.repeat(rows(1), 5, 0)
    verdict = DnC(1)(matrix(values), [], means())
    assert verdict.joined(matrix(values)).numpy() == pytest.approx(values[0], rel=1e-6)
    assert verdict.scores.isfinite().all()


def test_nothing_is_written_and_the_precision_does_not_matter():
    values = planted(size=80)
    before = values.copy()
    found = DnC(3, coordinates=30)(matrix(values), [], means())
    exact = DnC(3, coordinates=30)(matrix(values.astype("f8")), [], means())
    assert (values == before).all()
    assert torch.equal(found.weights, exact.weights)


def test_the_same_bytes_on_any_number_of_ranks(same_bytes):
    same_bytes(lambda: [[DnC(1, coordinates=50)], [DnC(2)]])


def test_needs_a_benign_majority():
    DnC(2).check(5)
    with pytest.raises(UserError, match=r"dnc needs n >= 2f\+1: n is 4, f is 2"):
        DnC(2).check(4)
    with pytest.raises(UserError, match=r"dnc would leave out all: c f is 2.5 x 2, n is 5"):
        DnC(2, c=2.5).check(5)


@pytest.mark.parametrize(
    "init_args", [{"f": -1}, {"c": 0.0}, {"iterations": 0}, {"coordinates": 0}]
)
def test_values_out_of_range(init_args):
    with pytest.raises(ValueError, match=rf"init_args\.{next(iter(init_args))} is"):
        DnC(**init_args)
