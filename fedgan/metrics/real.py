"""The real images that distances are taken to, and the cache of their features."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fedgan.cache import cache_dir, write_atomically
from fedgan.metrics._shared import digest
from fedgan.metrics._strata import stratified
from fedgan.metrics.base import Encoded, Encoder
from fedgan.seeding import derive

DRAWN = "stratified by class"
"""How the halves are drawn, for whoever reads a figure."""


def halves(labels: Tensor, samples: int, seed: int, pair: int = 0) -> Tensor:
    """Which of real images with these labels are in the halves, int64 [2 samples]: half A first,
    then B. Both have the classes' mix, to an image or two; another `pair` has other halves.

    >>> labels = torch.tensor([0, 1, 0, 1])
    >>> chosen = halves(labels, samples=2, seed=0)
    >>> sorted(chosen.tolist()), sorted(labels[chosen[:2]].tolist())
    ([0, 1, 2, 3], [0, 1])
    """
    order, _ = stratified(labels, derive(seed, "fidelity", "halves", pair))
    return order[: 2 * samples]


class RealImages:
    """Real images as one encoder is shown them, in a given order, and the cache of their features.

    `images` is uint8 [N, C, H, W], wherever it rests; batches of those that are `chosen`, int64
    [n], are taken from it one by one, so that no more than a batch need ever be on `device`.
    Features are cached under a hash of the chosen images, the encoder's fingerprint, the batch
    size and the kind of device.
    """

    def __init__(
        self,
        encoder: Encoder,
        images: Tensor,
        chosen: Tensor,
        batch_size: int = 50,
        device: torch.device | str = "cpu",
    ) -> None:
        self.encoder = encoder
        self.count = len(chosen)
        self.batch_size = batch_size
        self.device = torch.device(device)
        self._images = images
        self._chosen = chosen.split(batch_size)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._chosen)

    def batch(self, number: int) -> Tensor:
        """One batch on the device, uint8 [n, C, H, W]."""
        return self._rest(self._chosen[number]).to(self.device)

    def load(self) -> Encoded | None:
        """Features and logits of all from the cache, if they are there."""
        path = self._path
        try:
            features, logits = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # missing, or broken in any of pickle's many ways: encode again
            return None
        return features, logits

    def save(self, encoded: Encoded) -> None:
        """Keeps features and logits of all, in order, for the next run."""
        write_atomically(self._path, lambda beside: torch.save(list(encoded), beside))

    def _rest(self, chosen: Tensor) -> Tensor:
        return self._images[chosen.to(self._images.device)]

    @cached_property
    def _path(self) -> Path:
        key = digest(
            *(digest(self._rest(chosen)) for chosen in self._chosen),
            self.encoder.fingerprint,
            self.batch_size,
            self.device.type,
            torch.__version__,
        )
        return cache_dir("features") / f"{key}.pt"


class Halves(RealImages):
    """Two disjoint halves of n real images each, half A first; drawn by `seed`, with the classes'
    mix, of at least 8 `images` with their `labels`.

    Raises `ValueError` for fewer than 8 real images or fewer than 4 samples.
    """

    samples: int
    """n, the number of real images in each half and of generated images to measure: what was asked
    for, capped to half of the real images."""

    def __init__(
        self,
        encoder: Encoder,
        images: Tensor,
        labels: Tensor,
        samples: int,
        seed: int,
        batch_size: int = 50,
        device: torch.device | str = "cpu",
    ) -> None:
        self.samples = min(samples, len(images) // 2)
        if self.samples < 4:
            raise ValueError(
                f"a distance needs 4 samples and 8 real images at least, found {samples} and "
                f"{len(images)}"
            )
        super().__init__(encoder, images, halves(labels, self.samples, seed), batch_size, device)
