"""FedAvg believes everybody."""

from __future__ import annotations

import torch

from fedgan.defenses.fedavg import FedAvg
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix


def test_weights_are_those_it_was_given():
    fair = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    updates = UpdateMatrix(torch.randn(3, 4), (0, 1, 2), (0, 0, 0), fair)
    reports = [Report(i, 9, 10, 1.0, 100.0 * i, 1.0, 1.0) for i in range(3)]
    verdict = FedAvg()(updates, reports, 9)
    assert torch.equal(verdict.weights, fair)
    assert not verdict.flagged.any()
    assert not verdict.acted
    assert verdict.scores.isnan().all()
    assert verdict.aggregate is None


def test_has_no_memory():
    rule = FedAvg()
    rule.load_state_dict(rule.state_dict())
    assert rule.state_dict() == {}
