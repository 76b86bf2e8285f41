"""Report: all that a client tells the server beside its update."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Report:
    """One client's word about one round. The losses are its own claim: nobody has checked them.

    Losses are adversarial losses without the gradient penalty: the mean over the round's steps, and
    that of the last mini-batch.
    """

    client: int
    round: int
    n_images: int
    d_loss: float
    g_loss: float
    d_loss_last: float
    g_loss_last: float
    finite: bool = True
    """Whether every element of the update is a finite number; the server's own finding."""

    @property
    def status(self) -> str:
        """`ok`, or why the client is left out of this round: `non-finite update` or `loss`."""
        if not self.finite:
            return "non-finite update"
        losses = (self.d_loss, self.g_loss, self.d_loss_last, self.g_loss_last)
        return "ok" if all(map(math.isfinite, losses)) else "non-finite loss"


WIDTH = 7


def pack(client: int, n_images: int, losses: Tensor, update: Tensor) -> Tensor:
    """What a client reports, and whether its update is finite: a float64 row [7], ready for an
    all-gather.

    `losses` is [4]: d_loss, g_loss, d_loss_last, g_loss_last; nothing here waits for the device.
    """
    row = losses.new_empty(WIDTH, dtype=torch.float64)
    row[0].fill_(client)
    row[1].fill_(n_images)
    row[2:6] = losses
    row[6] = torch.isfinite(update).all()
    return row


def unpack(rows: Tensor, round: int) -> list[Report]:
    """Rows [m, 7] as reports in client order; rows of a client below 0 are padding."""
    reports = [
        Report(int(client), round, int(n_images), d, g, d_last, g_last, finite == 1.0)
        for client, n_images, d, g, d_last, g_last, finite in rows.tolist()
        if client >= 0
    ]
    return sorted(reports, key=lambda report: report.client)
