"""How far generated images are from real ones: Frechet and kernel distance, Inception Score.

The figures are torchmetrics' own, fed with features that were encoded once. Everything that
changes a figure beside the encoder is a constant on this page, and is reported by `settings`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedgan.cache import cache_dir, write_atomically
from fedgan.metrics._shared import digest, own_randomness
from fedgan.metrics.base import Encoder
from fedgan.seeding import derive, torch_generator

KERNEL_SUBSETS = 20
"""Random subsets that the kernel distance is averaged over."""
KERNEL_SUBSET_SIZE = 500
"""Images in such a subset; half of the samples where they are fewer than twice as many."""
SCORE_SPLITS = 10
"""Parts that the Inception Score is averaged over."""


class Fidelity:
    """Distances of generated images to real ones in one encoder's features, with their floors.

    Two disjoint halves A and B of n real images each are drawn by `seed`. Generated images are
    held against A; B against A gives the floor, which is what the distance comes to between two
    samples of the same images at this n. Distances fall as n grows, so n is part of the figure:
    `samples` is n, capped to half of the real images.

    `images` is uint8 [N, C, H, W], N >= 8, on the encoder's device. Real features are cached on
    disk under a hash of the images, the encoder's fingerprint and the batch size.

    Figures, for an encoder called x (fid, kid and is stand for fd_x, kd_x and is_x if it is
    `inception`):

    - `fd_x`: squared Frechet distance of Gaussians fitted to the features, in float64,
      |mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2)); `fd_x_floor`; `fd_x_ratio` = fd_x / fd_x_floor.
    - `kd_x`: unbiased squared maximum mean discrepancy under the kernel (a.b / F + 1)^3, mean over
      subsets; it may fall below 0. `kd_x_floor`; no ratio, as the floor is about 0.
    - `is_x`: exp E KL(p(y|x) || p(y)) of the logits' softmax, mean over splits; `is_x_real` is A's.
      At most the number of classes, and a rough figure where labels are not exclusive.

    Takes some 3 s of one core at n = 1000 and 1280 features, most of it for `fd_x`.
    Raises `ValueError` for fewer than 8 real images or fewer than 4 samples.

    Source: Heusel et al. (NeurIPS 2017), Binkowski et al. (ICLR 2018), Salimans et al. (NIPS 2016).

        fidelity = Fidelity(encoder, train_images, samples=1000, seed=1)
        features, logits = encode(encoder, generated, batch_size=50)
        figures = fidelity.measure(features, logits)
    """

    samples: int
    """n, the number of real images in each half and of generated images to measure."""
    distance: str
    """Name of the Frechet distance: fid, or fd_ and the encoder's name."""

    def __init__(
        self, encoder: Encoder, images: Tensor, samples: int, seed: int, batch_size: int = 50
    ) -> None:
        self.samples = min(samples, len(images) // 2)
        if self.samples < 4:
            raise ValueError(
                f"a distance needs 4 samples and 8 real images at least, found {samples} and "
                f"{len(images)}"
            )
        self.encoder = encoder
        self.batch_size = batch_size
        self.seed = seed
        inception = encoder.name == "inception"
        self.distance = "fid" if inception else f"fd_{encoder.name}"
        self._kernel = "kid" if inception else f"kd_{encoder.name}"
        self._score = "is" if inception else f"is_{encoder.name}"
        order = torch.randperm(
            len(images), generator=torch_generator(seed, "fidelity", "halves")
        ).to(images.device)
        features, logits = self._real(images[order[: 2 * self.samples]])
        self._a, b = torch.split(features, self.samples)
        self._floors = {
            f"{self.distance}_floor": frechet(self._a, b),
            f"{self._kernel}_floor": self._kernel_distance(b),
            f"{self._score}_real": self._inception_score(logits[: self.samples]),
        }

    def measure(self, features: Tensor, logits: Tensor) -> dict[str, float]:
        """Every figure of n generated images, from their features [n, F] and logits [n, L].

        Raises `ValueError` where their number is not `samples`: the floor would not be theirs.
        """
        if len(features) != self.samples or len(logits) != self.samples:
            raise ValueError(
                f"expected features and logits of {self.samples} images, found {len(features)} "
                f"and {len(logits)}"
            )
        distance = frechet(self._a, features)
        floor = self._floors[f"{self.distance}_floor"]
        return {
            self.distance: distance,
            f"{self.distance}_ratio": distance / floor if floor > 0 else math.inf,
            self._kernel: self._kernel_distance(features),
            self._score: self._inception_score(logits),
            **self._floors,
        }

    def settings(self) -> dict[str, Any]:
        """All that the figures depend on beside the generated images, for summary.json."""
        return {
            "encoder": {
                "name": self.encoder.name,
                "fingerprint": self.encoder.fingerprint,
                **self.encoder.details(),
            },
            "samples": self.samples,
            "batch_size": self.batch_size,
            "halves_seed": self.seed,
            "kernel_subsets": KERNEL_SUBSETS,
            "kernel_subset_size": self._subset_size,
            "score_splits": SCORE_SPLITS,
        }

    @property
    def _subset_size(self) -> int:
        return min(KERNEL_SUBSET_SIZE, self.samples // 2)

    def _real(self, images: Tensor) -> tuple[Tensor, Tensor]:
        key = digest(
            images,
            self.encoder.fingerprint,
            self.batch_size,
            images.device.type,
            torch.__version__,
        )
        path = cache_dir("features") / f"{key}.pt"
        cached = _load(path)
        if cached is None:
            cached = encode(self.encoder, images, self.batch_size)
            saved = list(cached)
            write_atomically(path, lambda beside: torch.save(saved, beside))
        return cached

    def _kernel_distance(self, features: Tensor) -> float:
        from torchmetrics.image.kid import KernelInceptionDistance

        with _quiet():
            metric = KernelInceptionDistance(
                Given(features.shape[1]),
                subsets=KERNEL_SUBSETS,
                subset_size=self._subset_size,
                sync_on_compute=False,
            )
        metric.update(_float64(self._a), real=True)
        metric.update(_float64(features), real=False)
        with own_randomness(derive(self.seed, "fidelity", "kernel")):
            mean, _ = metric.compute()
        return float(mean)

    def _inception_score(self, logits: Tensor) -> float:
        from torchmetrics.image.inception import InceptionScore

        with _quiet():
            metric = InceptionScore(
                Given(logits.shape[1]), splits=SCORE_SPLITS, sync_on_compute=False
            )
        metric.update(_float64(logits))
        with own_randomness(derive(self.seed, "fidelity", "score")), _quiet():
            mean, _ = metric.compute()
        return float(mean)


class Given(nn.Module):
    """Stands where torchmetrics expects an encoder: its input is features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance between Gaussians fitted to features [n, F] and [m, F], in float64.

    Agrees with scipy's sqrtm to 1e-6, relative, also where n < F.

    >>> a = torch.tensor([[0.0], [2.0]])
    >>> round(frechet(a, a + 3.0), 6)
    9.0
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    # one process measures, so it must not wait for the others; torchmetrics rounds its result to
    # the type of the features it was given
    metric = FrechetInceptionDistance(Given(a.shape[1]), sync_on_compute=False)
    metric.update(_float64(a), real=True)
    metric.update(_float64(b), real=False)
    return float(metric.compute())


def encode(encoder: Encoder, images: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Features [N, F] and logits [N, L], float32 on the CPU, of uint8 images [N, C, H, W].

    Images are encoded `batch_size` at a time, without gradients and in full precision whatever
    autocast is in force; no random numbers are drawn.
    """
    with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
        batches = [encoder(batch) for batch in torch.split(images, batch_size)]
        features, logits = zip(*batches, strict=True)
        return torch.cat(features).float().cpu(), torch.cat(logits).float().cpu()


def _float64(features: Tensor) -> Tensor:
    return features.detach().cpu().double()


def _load(path: Path) -> tuple[Tensor, Tensor] | None:
    try:
        features, logits = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # missing, or broken in any of pickle's many ways: encode again
        return None
    return features, logits


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torchmetrics: that features are held in memory, that one split has no spread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
