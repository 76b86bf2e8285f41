"""Noise by its moments, the rest against the definitions in plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.defenses.base import ServerMeans
from fedgan.defenses.chain import PerNetwork
from fedgan.defenses.fedavg import Mean
from fedgan.defenses.noise import CRFL, Noise, RobustLearningRate, WeakDP
from fedgan.errors import UserError
from fedgan.updates import UpdateMatrix

WEIGHTS = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
MANY = 200_000


def rows(n=5, size=40, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, size)) * np.exp(rng.normal(size=(n, 1)))).astype("f4")


def matrix(values, weights=WEIGHTS):
    weights = None if weights is None else torch.from_numpy(weights)
    return UpdateMatrix.of(torch.from_numpy(values), weights)


def means(size=40, round=1, **others):
    return ServerMeans(round, torch.zeros(size), **others)


def assert_gaussian(noise, sigma):
    """Mean, deviation and the share within one sigma, each to 5 standard errors."""
    noise = noise.double().numpy() / sigma
    root = math.sqrt(len(noise))
    assert abs(noise.mean()) < 5 / root
    assert abs(noise.std() - 1) < 5 / (math.sqrt(2) * root)
    inside = 0.6826894921
    assert abs((np.abs(noise) < 1).mean() - inside) < 5 * math.sqrt(inside * (1 - inside)) / root


@pytest.mark.parametrize("sigma", [1e-3, 2.0])
def test_noise_is_gaussian(sigma):
    aggregate = torch.linspace(-1, 1, MANY).double()
    assert_gaussian(Noise(sigma)(aggregate, means(MANY)) - aggregate, sigma)


def test_noise_of_weak_dp_and_of_crfl_is_gaussian():
    values = rows(size=MANY)
    updates = matrix(values)
    clean = WeakDP(1.0, 0.0)(updates, [], means(MANY)).aggregate
    assert_gaussian(WeakDP(1.0, 0.5)(updates, [], means(MANY)).aggregate - clean, 0.5)
    half = np.median(np.linalg.norm(values.astype("f8"), axis=1))
    shared = WeakDP(None, 0.0)(updates, [], means(MANY)).aggregate
    assert_gaussian(WeakDP()(updates, [], means(MANY)).aggregate - shared, 1e-3 * half)
    assert_gaussian(CRFL(1.0, 0.5)(torch.zeros(MANY), means(MANY)), 0.5)


@pytest.mark.parametrize("step", [Noise(0.1), CRFL(9.0, 0.1)])
def test_the_same_seed_and_round_give_the_same_noise_and_others_do_not(step):
    x = torch.randn(50)
    first = step(x, means(50, 3, seed=4))
    assert torch.equal(step(x, means(50, 3, seed=4)), first)
    assert not torch.equal(step(x, means(50, 4, seed=4)), first)
    assert not torch.equal(step(x, means(50, 3, seed=5)), first)
    assert torch.allclose(step(x.double(), means(50, 3, seed=4)).float(), first, atol=1e-6)


def test_stages_and_networks_have_noise_of_their_own():
    drawn = [step(torch.zeros(9), means(9)) for step in (Noise(1.0), CRFL(9.0, 1.0))]
    assert not torch.equal(*drawn)
    each = PerNetwork([WeakDP(1.0, 1.0), WeakDP(1.0, 1.0)], [20, 20])
    generator, critic = each(matrix(rows() * 1e-9), [], means()).aggregate.chunk(2)
    assert not torch.allclose(generator, critic, atol=1e-3)


@pytest.mark.parametrize("norm", [None, 0.5, 1e6])
def test_weak_dp_is_the_weighted_mean_of_clipped_updates(norm):
    values = rows()
    lengths = np.linalg.norm(values.astype("f8"), axis=1)
    bound = np.median(lengths) if norm is None else norm
    kept = WEIGHTS * np.minimum(1, bound / lengths)
    verdict = WeakDP(norm, 0.0)(matrix(values), [], means())
    assert verdict.aggregate.numpy() == pytest.approx(kept @ values, rel=1e-5, abs=1e-7)
    assert verdict.weights.numpy() == pytest.approx(kept / kept.sum())
    assert verdict.scores.numpy() == pytest.approx(lengths)
    assert not verdict.flagged.any()


def crfl(parameters, aggregate, rho):
    new = parameters.astype("f8") + aggregate
    return new * min(1, rho / np.linalg.norm(new)) - parameters


@pytest.mark.parametrize("rho", [1e-2, 1.0, 1e3])
def test_crfl_leads_to_clipped_parameters(rho):
    parameters, aggregate = rows(2)
    server = ServerMeans(1, torch.from_numpy(parameters))
    found = CRFL(rho, 0.0)(torch.from_numpy(aggregate), server)
    expected = crfl(parameters, aggregate, rho)
    assert found.numpy() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    reached = np.linalg.norm((server.parameters + found).numpy())
    assert reached <= rho * (1 + 1e-5) or reached == pytest.approx(
        np.linalg.norm(parameters + aggregate), rel=1e-6
    )


def test_crfl_takes_twice_the_first_norm_and_remembers_it():
    start, later, step = (torch.full((4,), x) for x in (1.0, 3.0, 2.0))
    first = CRFL(sigma=0.0)
    assert torch.equal(first(torch.zeros(4), ServerMeans(1, start)), torch.zeros(4))
    second = CRFL(sigma=0.0)
    second.load_state_dict(first.state_dict())
    for rule in (first, second):  # the bound is 4: two in each coordinate
        assert torch.equal(rule(step, ServerMeans(2, later)), torch.full((4,), -1.0))
    assert torch.equal(CRFL(sigma=0.0)(step, means(4)), step)  # started from nothing


@settings(max_examples=60)
@given(
    n=st.integers(1, 9),
    theta=st.one_of(st.none(), st.integers(1, 9)),
    seed=st.integers(0, 10**6),
)
def test_rlr_turns_coordinates_without_a_majority(n, theta, seed):
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=(n, 30))).astype("f4")  # zeros vote for nobody
    weights = rng.dirichlet(np.ones(n))
    expected = weights @ values
    least = 0.4 * n if theta is None else theta
    for j in range(30):
        votes = abs(sum(np.sign(values[i, j]) for i in range(n)))
        if votes < least:
            expected[j] = -expected[j]
    verdict = RobustLearningRate(theta)(matrix(values, weights), [], means(30))
    assert verdict.aggregate.numpy() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert verdict.weights.numpy() == pytest.approx(weights)


def test_rlr_needs_no_more_votes_than_there_are_clients():
    RobustLearningRate(theta=4).check(4)
    RobustLearningRate().check(1)
    with pytest.raises(UserError, match="rlr: theta is 5, more votes than the 4 clients"):
        RobustLearningRate(theta=5).check(4)


def test_rlr_leaves_equal_updates_and_turns_a_lone_voice():
    values = np.repeat(rows(1), 5, 0)
    verdict = RobustLearningRate(theta=5)(matrix(values), [], means())
    assert verdict.aggregate.numpy() == pytest.approx(values[0], rel=1e-6)
    assert not verdict.acted
    values[:, 3], values[0, 3] = 0, 50.0
    verdict = RobustLearningRate(theta=2)(matrix(values), [], means())
    assert verdict.aggregate[3].item() == pytest.approx(-5.0)
    assert verdict.acted


@pytest.mark.parametrize("make", [WeakDP, RobustLearningRate])
def test_the_order_of_clients_does_not_matter(make):
    values, order = rows(), [3, 0, 4, 2, 1]
    one = make()(matrix(values), [], means())
    other = make()(matrix(values[order], WEIGHTS[order]), [], means())
    assert torch.allclose(one.aggregate, other.aggregate, rtol=1e-5, atol=1e-7)
    assert torch.allclose(one.weights[order], other.weights)


@pytest.mark.parametrize("make", [WeakDP, RobustLearningRate])
@pytest.mark.parametrize("scale", [1e-4, 1e5])
def test_scales_with_the_updates(make, scale):
    values = rows()
    one, other = (make()(matrix(x), [], means()).aggregate for x in (values, scale * values))
    assert other.numpy() == pytest.approx(scale * one.numpy(), rel=1e-5, abs=1e-7 * scale)


def test_nothing_is_written():
    values = rows()
    before = values.copy()
    for rule in (WeakDP(), RobustLearningRate()):
        rule(matrix(values), [], means())
    assert (values == before).all()
    for step in (Noise(1.0), CRFL(0.1)):
        parameters, aggregate = torch.ones(4), torch.ones(4)
        step(aggregate, ServerMeans(1, parameters))
        assert torch.equal(aggregate, torch.ones(4))
        assert torch.equal(parameters, torch.ones(4))


def test_the_same_bytes_on_any_number_of_ranks(same_bytes):
    same_bytes(
        lambda: [
            [Mean(), Noise(0.1)],
            [WeakDP(), CRFL()],
            [RobustLearningRate(), CRFL(1.0, 0.0)],
        ]
    )


@pytest.mark.parametrize(
    ("cls", "init_args"),
    [
        (Noise, {"sigma": -0.1}),
        (Noise, {"sigma": float("nan")}),
        (WeakDP, {"norm": 0.0}),
        (WeakDP, {"sigma": -1.0}),
        (CRFL, {"rho": -1.0}),
        (CRFL, {"sigma": float("inf")}),
        (RobustLearningRate, {"theta": 0}),
    ],
)
def test_values_out_of_range(cls, init_args):
    with pytest.raises(ValueError, match=rf"init_args\.{next(iter(init_args))} is"):
        cls(**init_args)
