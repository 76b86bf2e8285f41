"""Attacks on updates against byzfl's, to 1e-9 relative."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgan.attacks.omniscient import ALittleIsEnough, InnerProductManipulation
from fedgan.attacks.updates import AttackView, Omniscience
from fedgan.updates import UpdateMatrix


def sent(attack, rows, attackers):
    """What `attackers` among the clients with updates [n, P] hand in."""
    n = len(rows)
    usable = UpdateMatrix.of(torch.from_numpy(rows))
    view = AttackView(
        round=2,
        attackers=attackers,
        n=n,
        weights=dict.fromkeys(range(n), 1 / n),
        parameters=torch.zeros(rows.shape[1], dtype=torch.float64),
        last_aggregate=None,
        omniscient=Omniscience(usable, attackers, {}),
        generator_size=rows.shape[1],
        seed=0,
    )
    planned = attack.plan(view)
    return attack.corrupt(torch.from_numpy(rows[attackers[0]]), attackers[0], planned, view).numpy()


@pytest.mark.parametrize("n", [4, 9, 20])
@pytest.mark.parametrize("size", [1, 50, 1000])
@pytest.mark.parametrize("tau", [0.3, 1.5])
class TestAgainstByzfl:
    @pytest.fixture
    def rows(self, n, size):
        return np.random.default_rng(n + size).normal(0.3, 1, size=(n, size))

    def test_a_little_is_enough(self, byzfl, rows, tau):
        """byzfl ADDS tau standard deviations, of n - 1; the paper subtracts z of them."""
        theirs = byzfl.ALittleIsEnough(tau)(rows[1:].copy())
        found = sent(ALittleIsEnough(-tau, sample_std=True), rows, (0,))
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())

    def test_inner_product_manipulation(self, byzfl, rows, tau):
        theirs = byzfl.InnerProductManipulation(tau)(rows[1:].copy())
        found = sent(InnerProductManipulation(tau), rows, (0,))
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())
