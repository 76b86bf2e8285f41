"""Attackers who know their own updates only, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgan.attacks.free_riders import FreeRider
from fedgan.attacks.model_poisoning import Gaussian, Neurotoxin, NormBound, Scaling, SignFlip


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("attackers", [(2,), (0, 3)])
def test_exact_scaling_makes_fedavg_return_the_attackers_own_update(
    drawn, sent, relative, dtype, within, attackers
):
    rows = drawn(6, dtype=dtype)
    weights = torch.tensor([0.1, 0.25, 0.2, 0.15, 0.2, 0.1], dtype=torch.float64)
    out = sent(Scaling(exact=True), rows, attackers, weights=weights)
    aggregate = weights.numpy() @ out.double().numpy()
    own = weights[list(attackers)].numpy()
    target = own @ rows[list(attackers)].double().numpy() / own.sum()
    assert relative(aggregate, target) < within


@pytest.mark.parametrize("attackers", [(2,), (0, 3)])
def test_scaling_leaves_the_benign_part_alone(drawn, sent, relative, attackers):
    rows = drawn(6)
    weights = torch.tensor([0.1, 0.25, 0.2, 0.15, 0.2, 0.1], dtype=torch.float64)
    out = sent(Scaling(), rows, attackers, weights=weights)
    total = sum(weights[i].item() for i in attackers)
    for i in attackers:
        assert relative(out[i], rows[i].double() / total) < 1e-7
    assert torch.equal(sent(Scaling(factor=5.0), rows, (1,))[1], rows[1] * 5)


def test_sign_flip(drawn, sent):
    rows = drawn(3)
    assert torch.equal(sent(SignFlip(), rows, (0,))[0], -rows[0])
    assert torch.equal(sent(SignFlip(3.0), rows, (0,))[0], -3 * rows[0])


def test_gaussian_noise_is_of_the_size_asked_for_and_never_twice_the_same(drawn, sent):
    rows = drawn(4, size=50_000)
    out = sent(Gaussian(std=0.5), rows, (0, 1))
    for i in (0, 1):
        assert (out[i].norm() / rows[i].norm()).item() == pytest.approx(0.5, rel=0.02)
        assert abs(torch.corrcoef(torch.stack([out[i], rows[i]]))[0, 1]) < 0.02
    assert abs(torch.corrcoef(out[:2])[0, 1]) < 0.02
    assert torch.equal(out, sent(Gaussian(std=0.5), rows, (0, 1)))
    later, other = (
        sent(Gaussian(std=0.5), rows, (0, 1), **how) for how in ({"round": 3}, {"seed": 1})
    )
    assert not torch.equal(out[0], later[0])
    assert not torch.equal(out[0], other[0])
    absolute = sent(Gaussian(std=2.0, relative=False), rows, (0,))[0]
    assert absolute.std().item() == pytest.approx(2, rel=0.02)
    added = sent(Gaussian(std=2.0, relative=False, add=True), rows, (0,))[0]
    assert torch.equal(added, rows[0] + absolute)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_neurotoxin_leaves_the_busiest_coordinates_exactly_alone(drawn, sent, share):
    rows, last = drawn(4), drawn(1, seed=3)[0]
    out = sent(Neurotoxin(share), rows, (1,), last=last)[1]
    busy = np.argsort(-np.abs(last.numpy()), kind="stable")[: round(share * len(last))]
    quiet = np.setdiff1d(np.arange(len(last)), busy)
    assert (out[busy] == 0).all()
    assert torch.equal(out[quiet], rows[1][quiet])


def test_neurotoxin_in_the_first_round_and_among_equals(drawn, sent):
    rows = drawn(4)
    assert torch.equal(sent(Neurotoxin(), rows, (1,))[1], rows[1])
    size = rows.shape[1]
    out = sent(Neurotoxin(0.25), rows, (1,), last=torch.ones(size))[1]
    assert (out[: size // 4] == 0).all()
    assert torch.equal(out[size // 4 :], rows[1, size // 4 :])


def test_norm_bound(drawn, see, sent, relative):
    rows = drawn(4) * 100
    bounded = sent(NormBound(0.5), rows, (1,))[1]
    assert bounded.double().norm().item() == pytest.approx(0.5, rel=1e-6)
    assert relative(bounded / bounded.norm(), rows[1] / rows[1].norm()) < 1e-6
    assert torch.equal(sent(NormBound(1e6), rows, (1,))[1], rows[1])
    attack = NormBound()
    for last in (None, drawn(1, seed=3)[0]):  # in the first round as in any
        view = see(rows * torch.arange(1, 5)[:, None], (1, 3), last=last)
        planned = attack.plan(view)
        for client in (1, 3):  # each as long as its own
            own = view.omniscient.usable.rows[client]
            assert torch.equal(attack.corrupt(own / 2, client, planned, view), own / 2)
            found = attack.corrupt(own.flip(0) * -7, client, planned, view)
            assert relative(found, -own.flip(0)) < 1e-6


def test_free_riders(drawn, sent):
    rows, last = drawn(4, size=50_000), drawn(1, seed=3, size=50_000)[0]
    assert not sent(FreeRider("zero"), rows, (1,), last=last)[1].any()
    assert torch.equal(sent(FreeRider("stale"), rows, (1,), last=last)[1], last)
    noisy = sent(FreeRider("noisy", std=0.2), rows, (1, 2), last=last)
    for i in (1, 2):
        assert ((noisy[i] - last).norm() / last.norm()).item() == pytest.approx(0.2, rel=0.02)
    assert not torch.equal(noisy[1], noisy[2])
    assert not sent(FreeRider("zero"), rows, (1,))[1].any()
    for mode in ("stale", "noisy"):  # nothing to repeat yet
        assert torch.equal(sent(FreeRider(mode), rows, (1,))[1], rows[1])
