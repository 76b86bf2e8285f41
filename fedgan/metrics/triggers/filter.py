"""A whitened filter for a trigger among its counterfeits, and the features it works on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from fedgan.metrics.triggers.base import CHUNK

Features = Callable[[Tensor], Tensor]
"""uint8 images [n, C, H, W] to float32 features [n, F]."""

SHRINKAGE = 0.1
"""Ridge of the covariance, as a share of its mean diagonal. From 0.02 to 0.5 detection on real
images hardly changes; less of it makes much of the noise that undertrained generators have."""
CELLS = 10
"""Cells along each edge in which energies are taken. From 8 on detection of warps through 4 x 4
points changes little: 10 was best on average of 8, 10, 12, 14 and 16 in three data sets."""
ROUNDING = 1 / 12
"""Variance that rounding to bytes leaves in every energy; keeps logarithms finite."""
BINOMIALS = (2.0, 6.0, 20.0, 70.0)
"""Sum of squares of the taps of a first to fourth difference."""


class Filter:
    """What a trigger and k counterfeits add to features, looked for in an image.

    With D = [d, nuisances] the trigger's own filter is S^-1 D (D' S^-1 D)^-1 e_1: of all linear
    measures that answer 1 to the trigger and 0 to every nuisance, the one with the least spread in
    clean images. The counterfeits' are S^-1 d_j less what they answer to any of D.

    Args:
        features: of uint8 images.
        seen: features of clean real images, float32 [n, F] on the CPU.
        added: what the trigger (first) and each counterfeit adds to them on average, [1 + k, F].
        nuisances: what else may have been added that is neither, [j, F].
        level: whether no filter may be taken to vary less on real images than the counterfeits'
            median, in amplitude. For places of an image, some of which may be empty (black corners)
            in real images and not so in generated ones.
    """

    def __init__(
        self,
        features: Features,
        seen: Tensor,
        added: Tensor,
        nuisances: Tensor | None = None,
        *,
        level: bool = False,
    ) -> None:
        self.features = features
        self.level = level
        self.mean = seen.mean(0)
        filters = whitened(seen - self.mean, added)
        filters = filters / (filters * added).sum(1, keepdim=True).clamp_min(1e-12)
        known, basis = added[:1], filters[:1]
        if nuisances is not None and len(nuisances):
            known = torch.cat([known, nuisances])
            basis = torch.cat([basis, whitened(seen - self.mean, nuisances)])
        answers = torch.linalg.pinv((basis @ known.T).double()).float()  # equal nuisances may be
        pure = answers @ basis  # answers 1 to its own of the known ones and 0 to the others
        self.weights = torch.cat([pure[:1], filters[1:] - (filters[1:] @ known.T) @ pure])
        self.middle = torch.zeros(len(added))
        self.spread = torch.ones(len(added))
        self.zero, self.one = 0.0, 1.0

    def set_scales(self, clean: Tensor, stamped: Tensor) -> None:
        """What amplitudes are on real images: their standard deviations, and the medians that are
        called 0 and 1."""
        before = self._answers(clean).cpu()
        self.middle, self.spread = before.mean(0), before.std(0)
        least = float(self.spread[1:].median()) if self.level else 0.0
        self.spread = self.spread.clamp_min(max(least, 1e-6))
        self.zero = float(self._raised(clean)[0].median())
        self.one = max(float(self._raised(stamped)[0].median()), self.zero + 1e-6)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitude and z of each of uint8 images [n, C, H, W], each float32 [n]."""
        raised, spread = self._raised(images)
        return (raised - self.zero) / (self.one - self.zero), raised / spread.clamp_min(1)

    def _raised(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """How far the trigger stands above the counterfeits' mean, and their spread, each [n]."""
        answers = self._answers(images)
        t = (answers - self.middle.to(answers)) / self.spread.to(answers)
        others = t[:, 1:]
        return t[:, 0] - others.mean(1), others.std(1)

    def _answers(self, images: Tensor) -> Tensor:
        """What each filter says to each image, [n, 1 + k]."""
        mean, weights = self.mean.to(images.device), self.weights.to(images.device)
        chunks = torch.split(images, CHUNK)
        return torch.cat([(self.features(chunk) - mean) @ weights.T for chunk in chunks])


def in_chunks(features: Features, images: Tensor) -> Tensor:
    """Features of any number of images, on the CPU."""
    return torch.cat([features(chunk).cpu() for chunk in torch.split(images, CHUNK)])


def whitened(centred: Tensor, directions: Tensor, shrinkage: float = SHRINKAGE) -> Tensor:
    """S^-1 applied to each of k directions [k, F], for S the covariance of centred features [n, F]
    plus `shrinkage` times its mean diagonal; float32 [k, F].

    By Woodbury's identity it takes an n x n system and no F x F matrix:
    S^-1 d = (d - X'(X X' + n r I)^-1 X d) / r.

    >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> whitened(x, torch.tensor([[1.0, 1.0]]), shrinkage=2.0)  # S = diag(1, 0) + I
    tensor([[0.5000, 1.0000]])
    """
    n = len(centred)
    ridge = shrinkage * max(float(centred.square().mean()), 1e-12)
    gram = (centred @ centred.T).double()
    gram.diagonal().add_(n * ridge)
    inside = torch.cholesky_solve((centred @ directions.T).double(), torch.linalg.cholesky(gram))
    return (directions - inside.float().T @ centred) / ridge


def pixels(images: Tensor) -> Tensor:
    """The pixels, in [0, 1]: float32 [n, C H W]."""
    return images.flatten(1).float() / 255


def energies(images: Tensor) -> Tensor:
    """How much fine detail is where: logarithms of the mean square of first to fourth differences
    along rows and along columns in `CELLS` x `CELLS` cells, float32 [n, 8 C CELLS^2] (fewer orders
    for images of under 5 pixels).

    Scaled so that white noise has the same energy, its variance, in every order.

    >>> energies(torch.zeros((1, 1, 16, 16), dtype=torch.uint8)).shape
    torch.Size([1, 800])
    """
    found = []
    for dim in (2, 3):
        detail = images.float()
        for squares in BINOMIALS[: images.shape[dim] - 1]:
            detail = detail.diff(dim=dim)
            energy = adaptive_avg_pool2d(detail.square(), CELLS) / squares
            found.append((energy + ROUNDING).log().flatten(1))
    return torch.cat(found, 1)
