"""Averages: FedAvg by images, and the plain mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from fedgan.defenses.base import Defense, ServerMeans, Verdict
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix


class FedAvg(Defense):
    """No defence: the mean of all updates, weighted as `federation.weights` says.

    Source: McMahan et al. 2017, arXiv 1602.05629, algorithm 1. x = sum_i n_i / N x_i, n_i the
    images of client i and N of all. Believes everybody: one malicious client moves the mean as far
    as it likes. Cost O(n P).
    """

    name: ClassVar[str] = "fedavg"

    @property
    def is_fair_mean(self) -> bool:
        return True

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        return Verdict.of(updates.weights, acted=False)


class Mean(Defense):
    """The plain mean: every client counts for 1 / n, whatever it says of its number of images.

    x = 1/n sum_i x_i. Stands no malicious client; cost O(n P).
    """

    name: ClassVar[str] = "mean"

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        n = len(updates)
        equal = torch.full((n,), 1 / n, dtype=torch.float64)
        return Verdict.of(equal, acted=not torch.equal(equal, updates.weights))
