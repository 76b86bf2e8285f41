"""The Frechet distance in its symmetric form, on torchmetrics' sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from fedgan.metrics._shared import Given


class FrechetDistance(FrechetInceptionDistance):
    """Squared Frechet distance of Gaussians fitted to features, in float64, never below 0.

        |mu - mu'|^2 + tr S + tr S' - 2 tr (S^1/2 S' S^1/2)^1/2

    The states are those of torchmetrics' `FrechetInceptionDistance`, sums of features and of their
    outer products: two [F, F] matrices, however many images there are, summed over the ranks. What
    differs is `compute`. torchmetrics takes eigenvalues of S S', which is not symmetric and where
    n < F has many zero eigenvalues that rounding splits into complex pairs; here the roots come
    from `eigh`, and the last trace is the sum of the singular values of S'^1/2 S^1/2, which are the
    square roots of the eigenvalues of S^1/2 S' S^1/2 without squaring them first. That is right to
    1e-12 of tr S + tr S', also where n < F; what is left below that is rounding and counts as 0.

    `origin`, [F], is taken off every feature before it is summed, which changes nothing but the
    rounding: it keeps the digits of features whose mean is far larger than their spread (beyond
    1e4 times or so). It must be the same on every rank; the mean of the real features will do.

    `update(features, real)` takes [n, F]; `compute` gives a float64 scalar. Raises `RuntimeError`
    for fewer than 2 images on either side, `ValueError` for features that are not finite. Takes
    2 s of one core at F = 1280 and 6 s at F = 2048; memory is some eight F x F matrices.

    Source: Dowson and Landau (1982), equation 4; Heusel et al. (NeurIPS 2017), equation 6.

    >>> distance = FrechetDistance(1)
    >>> distance.update(torch.tensor([[0.0], [2.0]]), real=True)
    >>> distance.update(torch.tensor([[3.0], [5.0]]), real=False)
    >>> distance.compute()
    tensor(9., dtype=torch.float64)
    """

    origin: Tensor

    def __init__(self, features: int, origin: Tensor | None = None, **kwargs: Any) -> None:
        super().__init__(Given(features), **kwargs)
        start = torch.zeros(features) if origin is None else origin.detach()
        if start.shape != (features,):
            raise ValueError(f"origin must be [{features}], found {list(start.shape)}")
        self.register_buffer("origin", start.double(), persistent=False)

    def update(self, features: Tensor, real: bool) -> None:
        """Adds features [n, F] of real or of generated images."""
        super().update(features.detach().double() - self.origin, real)

    def compute(self) -> Tensor:
        mean_a, root_a = self._gaussian("real")
        mean_b, root_b = self._gaussian("fake")
        traces = root_a.square().sum() + root_b.square().sum()
        cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
        spread = traces - 2 * cross
        noise = 8 * len(mean_a) * torch.finfo(torch.float64).eps * traces
        spread = torch.where(spread > noise, spread, torch.zeros_like(spread))
        return (mean_a - mean_b).square().sum() + spread

    def _gaussian(self, side: str) -> tuple[Tensor, Tensor]:
        """Mean [F] and a root R [r, F] of the covariance, S = R' R, of rank r."""
        n = getattr(self, f"{side}_features_num_samples")
        if n < 2:
            raise RuntimeError(f"a distance needs 2 images of each kind, found {int(n)} {side}")
        mean = getattr(self, f"{side}_features_sum") / n
        outer = getattr(self, f"{side}_features_cov_sum")
        if not bool(outer.isfinite().all()):
            raise ValueError(f"{side} features are not finite")
        values, vectors = torch.linalg.eigh((outer - n * torch.outer(mean, mean)) / (n - 1))
        # a zero eigenvalue comes out as rounding, whose root would be no longer small
        kept = values > len(values) * torch.finfo(torch.float64).eps * values[-1]
        return mean, values[kept].sqrt()[:, None] * vectors[:, kept].T


def frechet(a: Tensor, b: Tensor) -> float:
    """`FrechetDistance` between features [n, F] and [m, F] that are all at hand, on the CPU.

    >>> a = torch.tensor([[0.0], [2.0]])
    >>> frechet(a, a + 3.0), frechet(a, a)
    (9.0, 0.0)
    """
    a, b = (features.detach().cpu().double() for features in (a, b))
    # whoever measures must not wait for other ranks
    metric = FrechetDistance(a.shape[1], a.mean(0), sync_on_compute=False)
    metric.update(a, real=True)
    metric.update(b, real=False)
    return float(metric.compute())
