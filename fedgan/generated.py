"""The images that are measured: a generator's, or somebody else's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fedgan.errors import UserError
from fedgan.images import to_uint8
from fedgan.metrics._strata import stratified
from fedgan.metrics.base import Encoded, Encoder
from fedgan.metrics.measure import Generated, Scene
from fedgan.models.base import Generator
from fedgan.seeding import derive, torch_generator


@dataclass(frozen=True)
class Latents:
    """Fixed input of a generator, the same in every look: latents [n, Z] and labels."""

    latents: Tensor
    labels: Tensor

    @classmethod
    def draw(cls, n: int, dim: int, labels: Tensor, seed: int, device: torch.device) -> Latents:
        """n latents, with labels drawn from those of the training images as the halves of real
        images are, so that generated and real images have the same mix of classes."""
        rng = torch_generator(seed, "evaluation latents")
        latents = torch.randn((n, dim), generator=rng)
        order, _ = stratified(labels, derive(seed, "evaluation labels"))
        chosen = order.repeat(-(-n // len(order)))[:n]
        return cls(latents.to(device), labels[chosen.to(labels.device)].to(device))

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.latents.split(size), self.labels.split(size), strict=True))


@torch.inference_mode()
def generate(generator: Generator, latents: Tensor, labels: Tensor) -> Tensor:
    """uint8 images [n, C, H, W] of a generator in eval mode."""
    return to_uint8(generator(latents, labels))


class _Seen(Generated):
    """Encodes its images once for each encoder."""

    def __init__(self, scene: Scene, images: Tensor, labels: Tensor | None) -> None:
        self.scene = scene
        self.images = images
        self.labels = labels
        self._seen: dict[str, Encoded] = {}

    def seen(self, encoder: Encoder) -> Encoded:
        if encoder.fingerprint not in self._seen:
            self._seen[encoder.fingerprint] = self.scene.encode(encoder, self.images)
        return self._seen[encoder.fingerprint]


class FromGenerator(_Seen):
    """A generator's images, in batches that the ranks share."""

    def __init__(self, scene: Scene, generator: Generator, latents: Latents) -> None:
        self.generator = generator
        images = self._generate(scene, latents)
        super().__init__(scene, images, latents.labels.cpu())

    def draw(self, labels: Tensor, purpose: str) -> Tensor:
        rng = torch_generator(self.scene.seed, "drawn latents", purpose)
        latents = torch.randn((len(labels), self.generator.latent_dim), generator=rng)
        device = self.scene.device
        return self._generate(self.scene, Latents(latents.to(device), labels.to(device)))

    def _generate(self, scene: Scene, latents: Latents) -> Tensor:
        batches = latents.batches(scene.batch_size)
        jobs = [partial(self._batch, *batch) for batch in batches]
        return torch.cat(scene.share(jobs))

    def _batch(self, latents: Tensor, labels: Tensor) -> Tensor:
        return generate(self.generator, latents, labels).cpu()


class Given(_Seen):
    """Somebody else's images: uint8 [N, C, H, W], with labels or without."""

    def __init__(
        self, scene: Scene, images: Tensor, labels: Tensor | None, classes: tuple[str, ...]
    ) -> None:
        rng = torch_generator(scene.seed, "given images")
        chosen = torch.randperm(len(images), generator=rng)
        sample = chosen[: scene.samples]
        super().__init__(scene, images[sample], None if labels is None else labels[sample])
        # Those that are not in the sample come first where measures draw.
        self._pool = torch.cat([chosen[scene.samples :], sample])
        self._images, self._labels, self._classes = images, labels, classes

    def draw(self, labels: Tensor, purpose: str) -> Tensor:
        if self._labels is None:
            raise UserError(f"--images: {purpose} needs labels, and these images have none")
        if self._labels.shape[1:] != labels.shape[1:]:
            raise UserError(f"--images: {purpose} needs labels such as the real images have")
        found = torch.empty(len(labels), dtype=torch.int64)
        own = self._labels[self._pool]
        for label in labels.unique(dim=0):
            wanted = _equal(labels, label).nonzero()[:, 0]
            there = self._pool[_equal(own, label)]
            if len(there) < len(wanted):
                name = self._classes[int(label)] if label.ndim == 0 else label.int().tolist()
                raise UserError(
                    f"--images: {purpose} needs {len(wanted)} images of {name}, "
                    f"and there are {len(there)}"
                )
            found[wanted] = there[: len(wanted)]
        return self._images[found]


def _equal(labels: Tensor, label: Tensor) -> Tensor:
    same = labels == label
    return same if same.ndim == 1 else same.all(1)
