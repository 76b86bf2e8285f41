"""Attacks on reports: what a liar says of its losses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedgan.attacks.reports import CleanReport, MedianReport
from fedgan.attacks.updates import AttackView, Omniscience
from fedgan.reports import finished, forged, losses_of, pack, pack_absent, unpack
from fedgan.updates import UpdateMatrix

OWN = torch.tensor([9.0, 9.5, 10.0, 10.5], dtype=torch.float64)


def see(losses):
    usable = UpdateMatrix.of(torch.ones(2, 3))
    known = {client: torch.tensor(row, dtype=torch.float64) for client, row in losses.items()}
    omniscient = Omniscience(usable, (0,), known)
    return AttackView(1, (0,), 2, {0: 0.5, 1: 0.5}, torch.zeros(3), None, omniscient, 2)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_median_of_what_benign_clients_last_said(count):
    losses = np.random.default_rng(count).normal(size=(count, 4))
    found = MedianReport().forge(OWN, None, see(dict(enumerate(losses.tolist()))))
    assert found.numpy() == pytest.approx(np.median(losses, axis=0), rel=1e-12)
    assert OWN.tolist() == [9.0, 9.5, 10.0, 10.5]


def test_its_own_while_none_is_known():
    assert torch.equal(MedianReport().forge(OWN, None, see({})), OWN)


def test_the_losses_of_honest_training():
    honest = OWN / 10
    assert torch.equal(CleanReport().forge(OWN, honest, see({})), honest)
    assert torch.equal(CleanReport().forge(OWN, None, see({})), OWN)


def test_a_forged_report_is_of_the_update_that_is_sent():
    update = torch.tensor([3.0, 4.0, 0.0])
    row = pack(7, 20, torch.tensor([1.0, 2.0, 3.0, 4.0]), update)
    lie = forged(row, OWN, 10 * update)
    assert (row[6].item(), lie[6].item()) == (5.0, 50.0)
    assert torch.equal(losses_of(lie), OWN)
    assert losses_of(row).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert (int(lie[0]), int(lie[1]), int(lie[7])) == (7, 20, 0)
    (report,) = unpack(lie[None], 3)
    assert (report.client, report.round, report.n_images, report.status) == (7, 3, 20, "ok")
    (empty,) = unpack(forged(row, OWN, 0 * update)[None], 3)
    assert empty.status == "zero update"


def test_who_has_trained_to_the_end():
    assert finished(pack(1, 2, torch.ones(4), torch.ones(3)))
    for status in ("dropped out", "timed out", "failed"):
        row = pack_absent(1, 2, status, torch.device("cpu"))
        assert not finished(row)
        assert math.isnan(losses_of(row)[0])
