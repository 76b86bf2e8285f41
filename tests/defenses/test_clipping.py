"""Clipping against the definitions in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.defenses.base import ServerMeans
from fedgan.defenses.clipping import CenteredClipping, Clip
from fedgan.updates import UpdateMatrix

WEIGHTS = np.array([0.1, 0.3, 0.2, 0.25, 0.15])


def rows(n=5, size=40, seed=0, spread=2.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, size)) * np.exp(spread * rng.normal(size=(n, 1)))).astype("f4")


def matrix(values, weights=None):
    weights = None if weights is None else torch.from_numpy(weights)
    return UpdateMatrix.of(torch.from_numpy(values), weights)


def means(size=40):
    return ServerMeans(1, torch.zeros(size))


def centred(values, start, tau, iterations):
    """The published iteration, vector by vector."""
    x, v = values.astype("f8"), start.astype("f8")
    if tau is None:
        tau = np.median([np.linalg.norm(row - v) for row in x])
    for _ in range(iterations):
        step = np.zeros_like(v)
        for row in x:
            apart = np.linalg.norm(row - v)
            step += (row - v) * (1 if apart <= tau else tau / apart)
        v = v + step / len(x)
    return v


@pytest.mark.parametrize("norm", [None, 0.5, 5.0, 1e9])
@pytest.mark.parametrize("n", [1, 4, 5])
def test_no_update_is_longer_than_the_bound(norm, n):
    values = rows(n)
    lengths = np.linalg.norm(values.astype("f8"), axis=1)
    bound = np.median(lengths) if norm is None else norm
    clipped = Clip(norm)(matrix(values), [], means())
    expected = values * np.minimum(1, bound / lengths)[:, None]
    found = clipped.take(torch.arange(40)).numpy()
    assert found == pytest.approx(expected, rel=1e-6)
    assert clipped.norms().numpy() == pytest.approx(np.minimum(lengths, bound), rel=1e-9)


def test_the_weights_stay_those_of_the_clients():
    clipped = Clip(1.0)(matrix(rows(), WEIGHTS), [], means())
    assert clipped.weights.tolist() == WEIGHTS.tolist()


def test_a_row_of_zeros_stays():
    values = rows()
    values[2] = 0
    clipped = Clip(1e-3)(matrix(values), [], means())
    assert clipped.norms().tolist() == pytest.approx([1e-3, 1e-3, 0, 1e-3, 1e-3])


@settings(max_examples=60)
@given(
    n=st.integers(1, 9),
    tau=st.one_of(st.none(), st.floats(0.1, 100)),
    iterations=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_centred_clipping_is_the_published_iteration(n, tau, iterations, seed):
    rule, centre = CenteredClipping(tau, iterations), np.zeros(40)
    for round in range(3):
        values = rows(n, seed=seed + round)
        verdict = rule(matrix(values), [], means())
        centre = centred(values, centre, tau, iterations)
        size = max(np.abs(centre).max(), np.finfo("f4").tiny)
        assert verdict.aggregate.numpy() == pytest.approx(centre, rel=1e-5, abs=1e-5 * size)
        assert verdict.weights.sum().item() == pytest.approx(1)
        apart = np.linalg.norm(values - centre, axis=1)
        assert verdict.scores.numpy() == pytest.approx(apart, rel=1e-4)
        centre = verdict.aggregate.numpy()


@pytest.mark.parametrize("far", [1e3, 1e6, 1e12])
def test_one_client_moves_it_by_no_more_than_tau_over_n(far):
    values = rows(spread=0)
    with_zero, attacked = values.copy(), values.copy()
    with_zero[0], attacked[0] = 0, far
    found = [CenteredClipping(tau=2.0)(matrix(x), [], means()) for x in (with_zero, attacked)]
    moved = (found[0].aggregate - found[1].aggregate).norm().item()
    assert moved == pytest.approx(2.0 / 5, rel=1e-5)
    assert found[1].scores.argmax() == 0


def test_a_wide_radius_is_the_mean():
    values = rows()
    verdict = CenteredClipping(tau=1e6, iterations=3)(matrix(values, WEIGHTS), [], means())
    assert verdict.aggregate.numpy() == pytest.approx(values.mean(0), abs=1e-5)
    assert not verdict.acted
    assert CenteredClipping(tau=1e-6)(matrix(values), [], means()).acted


@pytest.mark.parametrize("scale", [1e-3, -2.0, 1e4])
def test_by_the_median_it_scales_with_the_updates(scale):
    one, other = CenteredClipping(iterations=2), CenteredClipping(iterations=2)
    for round in range(3):
        values = rows(seed=round).astype("f8")
        expected = scale * one(matrix(values), [], means()).aggregate
        found = other(matrix(scale * values), [], means()).aggregate
        assert found.numpy() == pytest.approx(expected.numpy(), rel=1e-9)


@pytest.mark.parametrize("make", [CenteredClipping, lambda: CenteredClipping(1.0, 3)])
def test_the_order_of_clients_does_not_matter(make):
    values, order = rows(), [3, 0, 4, 2, 1]
    one, other = (make()(matrix(x), [], means()) for x in (values, values[order]))
    assert torch.allclose(one.aggregate, other.aggregate, rtol=1e-6)
    assert torch.allclose(one.weights[order], other.weights)


def test_equal_updates_are_their_own_aggregate():
    values = np.repeat(rows(1), 6, 0)
    for iterations in (1, 3):
        verdict = CenteredClipping(iterations=iterations)(matrix(values), [], means())
        assert verdict.aggregate.numpy() == pytest.approx(values[0], rel=1e-6)
        assert verdict.scores.numpy() == pytest.approx(np.zeros(6), abs=1e-5)


def test_a_restored_centre_goes_on_as_the_old_one():
    whole, first = CenteredClipping(2.0, 2), CenteredClipping(2.0, 2)
    for round in range(6):
        if round in (0, 3):
            state = first.state_dict()
            first = CenteredClipping(2.0, 2)
            first.load_state_dict(state)
        updates = matrix(rows(seed=round))
        found, expected = (rule(updates, [], means()).aggregate for rule in (first, whole))
        assert found.numpy().tobytes() == expected.numpy().tobytes()


def test_nothing_is_written_and_the_dtype_is_kept():
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-12)):
        values = rows().astype(dtype)
        before, start = values.copy(), rows(1, seed=9)[0]
        rule = CenteredClipping(1.0)
        rule.load_state_dict({"centre": torch.from_numpy(start)})
        found = rule(Clip()(matrix(values), [], means()), [], means()).aggregate
        assert (values == before).all()
        assert (start == rows(1, seed=9)[0]).all()
        assert found.numpy().dtype == dtype
        lengths = np.linalg.norm(before.astype("f8"), axis=1, keepdims=True)
        clipped = before.astype("f8") * np.minimum(1, np.median(lengths) / lengths)
        assert found.numpy() == pytest.approx(centred(clipped, start, 1.0, 1), rel=tolerance)


def test_the_same_bytes_on_any_number_of_ranks(same_bytes):
    same_bytes(lambda: [[Clip()], [Clip(3.0), CenteredClipping(2.0, 3)], [CenteredClipping()]])


@pytest.mark.parametrize(
    ("cls", "init_args"),
    [
        (Clip, {"norm": 0.0}),
        (Clip, {"norm": float("inf")}),
        (CenteredClipping, {"tau": -1.0}),
        (CenteredClipping, {"tau": float("nan")}),
        (CenteredClipping, {"iterations": 0}),
    ],
)
def test_values_out_of_range(cls, init_args):
    with pytest.raises(ValueError, match=rf"init_args\.{next(iter(init_args))} is"):
        cls(**init_args)
