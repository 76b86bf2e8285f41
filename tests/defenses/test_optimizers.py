"""The server's optimisers against their papers' recursions, coordinate by coordinate."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.defenses.base import ServerMeans
from fedgan.defenses.clipping import Clip
from fedgan.defenses.optimizers import FedAdam, FedAvgM, FedYogi

SERVER = ServerMeans(1, torch.zeros(6))
STEPS = [FedAvgM, FedAdam, FedYogi]


def aggregates(rounds=8, seed=0, scale=0.01):
    return np.random.default_rng(seed).normal(0, scale, (rounds, 6)).astype("f4")


def momentum(x, eta, beta1):
    m, steps = 0.0, []
    for value in x:
        m = beta1 * m + value
        steps.append(eta * m)
    return steps


def adaptive(x, eta, beta1, beta2, tau, *, yogi):
    m, v, steps = 0.0, tau**2, []
    for value in x:
        m = beta1 * m + (1 - beta1) * value
        square = value * value
        if yogi:
            v = v - (1 - beta2) * square * np.sign(v - square)
        else:
            v = beta2 * v + (1 - beta2) * square
        steps.append(eta * m / (math.sqrt(v) + tau))
    return steps


@settings(max_examples=40)
@given(
    eta=st.floats(1e-3, 10),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.999),
    tau=st.floats(1e-4, 0.1),
    scale=st.floats(1e-4, 10),
    seed=st.integers(0, 10**6),
)
def test_steps_are_those_of_the_papers(eta, beta1, beta2, tau, scale, seed):
    table = aggregates(seed=seed, scale=scale)
    for step, reference in (
        (FedAvgM(eta, beta1), lambda x: momentum(x, eta, beta1)),
        (FedAdam(eta, beta1, beta2, tau), lambda x: adaptive(x, eta, beta1, beta2, tau, yogi=0)),
        (FedYogi(eta, beta1, beta2, tau), lambda x: adaptive(x, eta, beta1, beta2, tau, yogi=1)),
    ):
        found = torch.stack([step(torch.from_numpy(x), SERVER) for x in table]).numpy()
        expected = np.array([reference(column) for column in table.astype("f8").T]).T
        bound = 1e-4 * np.abs(expected).max()
        assert found == pytest.approx(expected, rel=1e-4, abs=bound)


def test_without_momentum_fedavgm_is_fedavg():
    for x in torch.from_numpy(aggregates()):
        assert torch.equal(FedAvgM(beta1=0.0)(x, SERVER), x)


def test_momentum_ends_at_ten_times_a_constant_update():
    step = FedAvgM()
    for _ in range(200):
        last = step(torch.ones(2), SERVER)
    assert last.tolist() == pytest.approx([10, 10], rel=1e-6)


@pytest.mark.parametrize("cls", [FedAdam, FedYogi])
def test_a_constant_update_is_followed_at_eta_whatever_its_size(cls):
    for size in (1.0, 100.0):
        step = cls(eta=0.01)
        for _ in range(2000):
            last = step(torch.full((2,), size), SERVER)
        assert last.tolist() == pytest.approx([0.01, 0.01], rel=0.01)


@pytest.mark.parametrize("cls", STEPS)
def test_a_restored_memory_goes_on_as_the_old_one(cls):
    whole, first = cls(), cls()
    for round, x in enumerate(torch.from_numpy(aggregates())):
        if round in (0, 4):
            state = first.state_dict()
            first = cls()
            first.load_state_dict(state)
        assert torch.equal(first(x, SERVER), whole(x, SERVER))


@pytest.mark.parametrize("cls", STEPS)
def test_nothing_is_written_and_the_dtype_is_kept(cls):
    for dtype in (torch.float32, torch.float64):
        x = torch.from_numpy(aggregates()[0]).to(dtype)
        before, step = x.clone(), cls()
        first = step(x, SERVER)
        kept = first.clone()
        step(x, SERVER)
        assert torch.equal(x, before)
        assert torch.equal(first, kept)
        assert first.dtype == dtype


def test_the_same_bytes_on_any_number_of_ranks(same_bytes):
    same_bytes(lambda: [[Clip(), FedAdam()], [FedAvgM()], [FedYogi(), FedAvgM()]])


@pytest.mark.parametrize("cls", STEPS)
@pytest.mark.parametrize("init_args", [{"eta": 0.0}, {"beta1": 1.0}, {"beta1": -0.1}])
def test_values_out_of_range(cls, init_args):
    with pytest.raises(ValueError, match=rf"init_args\.{next(iter(init_args))} is"):
        cls(**init_args)


@pytest.mark.parametrize("cls", [FedAdam, FedYogi])
@pytest.mark.parametrize("init_args", [{"beta2": 1.0}, {"tau": 0.0}])
def test_values_of_adaptive_steps_out_of_range(cls, init_args):
    with pytest.raises(ValueError, match=rf"init_args\.{next(iter(init_args))} is"):
        cls(**init_args)
