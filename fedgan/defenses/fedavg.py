"""No defence: the weighted mean of all updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from fedgan.defenses.base import Defense, Verdict
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix


class FedAvg(Defense):
    """FedAvg (McMahan et al. 2017, arXiv 1602.05629, algorithm 1): believes everybody."""

    name: ClassVar[str] = "none"

    def __call__(self, updates: UpdateMatrix, reports: Sequence[Report], round: int) -> Verdict:
        n = len(updates)
        scores = torch.full((n,), torch.nan, dtype=torch.float64)
        return Verdict(updates.weights, scores, torch.zeros(n, dtype=torch.bool))
