"""Federations of five clients, the second and the fourth of whom attack."""

from __future__ import annotations

import pytest
import torch

from fedgan.reports import LOSSES

FIVE = {"federation.clients": 5, "attack.clients": [1, 3]}


@pytest.fixture(scope="session")
def five(tiny):
    """The tiny config with five clients: `five({"attack.update": "alie"})`."""

    def make(changes=None):
        return tiny({**FIVE, **(changes or {})})

    return make


@pytest.fixture
def federate(federate):
    """A federation of five, handed to `work` on every rank."""

    def start(work, changes=None, world=1):
        return federate(work, {**FIVE, **(changes or {})}, world)

    return start


@pytest.fixture(scope="session")
def trained():
    """The updates and the reports of a round, on one process."""

    def play(federation, round=1):
        everybody = [0, 1, 2, 3, 4]
        training = federation.pool.train_once(federation.server.parameters, everybody, round)
        rows = dict(zip(training.updates.clients, training.updates.rows, strict=True))
        return rows, {report.client: report for report in training.reports}

    return play


@pytest.fixture(scope="session")
def losses():
    """All losses of a report."""

    def read(report):
        return [getattr(report, name) for name in LOSSES]

    return read


@pytest.fixture(scope="session")
def broken():
    """`broken(federation, 3, "fails")`: that client's steps fail, or else their losses are nan."""

    def spoil(federation, number, how):
        if number not in federation.pool.clients:
            return
        gan = federation.pool.clients[number].gan
        step = gan.training_step

        def training_step(batch, index):
            found = step(batch, index)
            if how == "fails":
                raise ValueError("broken")
            return found * torch.nan

        gan.training_step = training_step

    return spoil
