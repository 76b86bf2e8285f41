"""Updates, what attackers see of them, and what all clients then hand in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgan.attacks.updates import AttackView, Omniscience
from fedgan.updates import UpdateMatrix


@pytest.fixture(scope="session")
def drawn():
    """Updates of n clients that agree on a direction and differ a little."""

    def make(n, seed=0, size=200, dtype=torch.float32):
        rng = np.random.default_rng(seed)
        shared, spread = 0.3 * rng.normal(size=size), rng.normal(size=(n, size))
        rows = shared + spread * rng.uniform(0.1, 1, size=size)
        return torch.tensor(rows * 0.01, dtype=dtype)

    return make


@pytest.fixture(scope="session")
def see():
    """A view of updates [n, P] on this process, and the matrix of them."""

    def make(rows, attackers, weights=None, last=None, clients=None, round=2, seed=0):
        n = len(rows)
        weights = torch.full((n,), 1 / n, dtype=torch.float64) if weights is None else weights
        clients = tuple(range(n)) if clients is None else clients
        usable = UpdateMatrix(rows, clients, (0,) * n, weights)
        return AttackView(
            round=round,
            attackers=tuple(attackers),
            n=n,
            weights=dict(zip(clients, weights.tolist(), strict=True)),
            parameters=torch.zeros(rows.shape[1]),
            last_aggregate=last,
            omniscient=Omniscience(usable, tuple(attackers), {}),
            generator_size=rows.shape[1] // 2,
            seed=seed,
        )

    return make


@pytest.fixture(scope="session")
def sent(see):
    """What all clients hand in: [n, P], the attackers' rows changed."""

    def hand_in(attack, rows, attackers, **how):
        view = see(rows, attackers, **how)
        planned = attack.plan(view)
        out = rows.clone()
        for i, client in enumerate(view.omniscient.usable.clients):
            if client in attackers:
                out[i] = attack.corrupt(rows[i], client, planned, view)
        return out

    return hand_in


@pytest.fixture(scope="session")
def relative():
    """The largest difference from what is expected, over the largest of what is expected."""

    def measure(found, expected):
        found, expected = (np.asarray(x, dtype=np.float64) for x in (found, expected))
        return np.abs(found - expected).max() / np.abs(expected).max()

    return measure
