"""Precision, recall, density and coverage of features that come in batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from fedgan.metrics.coverage import NEIGHBOURS, overlap, radii


class PrecisionRecallDensityCoverage(Metric):
    """Improved precision and recall, density and coverage; see the measure `Coverage`.

    `update(features, real)` takes [n, F] of real or of generated images; `compute` gives float64
    scalars by the names `precision`, `recall`, `density` and `coverage`. All features are kept, on
    the CPU or wherever they were, and gathered from all ranks; the order does not matter.

    A feature at exactly the radius is inside the ball, as in Kynkaanniemi et al. and torch-fidelity
    (whose k is called `prc_neighborhood`, 3 by default); the code of Naeem et al. leaves it out.

    Takes 0.5 s of one core at 1000 images of each kind and 1280 features, some four times as long
    at twice as many; memory is the features, and 100 MB for blocks of distances.

    Raises `ValueError` in `compute` where there are not more than k images on each side.

    >>> metric = PrecisionRecallDensityCoverage(neighbours=1)
    >>> metric.update(torch.tensor([[0.0], [1.0], [5.0], [7.0]]), real=True)
    >>> metric.update(torch.tensor([[0.5], [0.6], [9.5]]), real=False)
    >>> {name: round(float(value), 3) for name, value in metric.compute().items()}
    {'precision': 0.667, 'recall': 0.75, 'density': 1.333, 'coverage': 0.5}
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, neighbours: int = NEIGHBOURS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, found {neighbours}")
        self.neighbours = neighbours
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        """Adds features [n, F] of real or of generated images."""
        if features.ndim != 2:
            raise ValueError(f"features must be [n, F], found {list(features.shape)}")
        (self.real if real else self.fake).append(features.detach())

    def compute(self) -> dict[str, Tensor]:
        # lists, or a tensor once ranks have been joined
        real, fake = (
            side if isinstance(side, Tensor) else torch.cat(side) if side else torch.empty(0, 1)
            for side in (self.real, self.fake)
        )
        k = self.neighbours
        found = overlap(real, fake, radii(real, k), radii(fake, k), k)
        return {
            name: torch.tensor(value, dtype=torch.float64, device=real.device)
            for name, value in found._asdict().items()
        }
