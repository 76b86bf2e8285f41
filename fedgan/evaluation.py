"""Looking at the global generator: fidelity and trigger presence on a fixed set of latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgan.cluster import Cluster
from fedgan.images import to_uint8
from fedgan.metrics.base import Encoder
from fedgan.metrics.fidelity import Fidelity
from fedgan.metrics.presence import TriggerPresence, wilson
from fedgan.models.base import Generator
from fedgan.seeding import torch_generator

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Latents:
    """Fixed input of a generator, the same in every look: latents [n, Z] and labels."""

    latents: Tensor
    labels: Tensor

    @classmethod
    def draw(cls, n: int, dim: int, labels: Tensor, seed: int, device: torch.device) -> Latents:
        """n latents, with labels drawn from those of the training images, so that generated and
        real images have the same mix of classes."""
        rng = torch_generator(seed, "evaluation latents")
        latents = torch.randn((n, dim), generator=rng)
        chosen = torch.randint(len(labels), (n,), generator=rng)
        return cls(latents.to(device), labels[chosen.to(labels.device)].to(device))

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.latents.split(size), self.labels.split(size), strict=True))


@torch.inference_mode()
def generate(generator: Generator, latents: Tensor, labels: Tensor) -> Tensor:
    """uint8 images [n, C, H, W] of a generator in eval mode."""
    return to_uint8(generator(latents, labels))


class Examiner:
    """Measures a generator with one encoder. Every rank generates and encodes its share.

    Args:
        fidelity: real features, and the distances to them.
        presence: the matched filter for the attack's trigger, or None.
        latents: what to generate from, at least `fidelity.n`.
    """

    def __init__(
        self, fidelity: Fidelity, presence: TriggerPresence | None, latents: Latents, batch: int
    ) -> None:
        self.fidelity = fidelity
        self.presence = presence
        self.latents = latents
        self.batch = batch

    @property
    def encoder(self) -> Encoder:
        return self.fidelity.encoder

    def measure(
        self, generator: Generator, cluster: Cluster, tick: Tick | None = None
    ) -> dict[str, float]:
        """All figures by name, on every rank the same. `tick` is told of each encoded image."""
        # Whole batches are dealt out, so that an image is computed alike whoever computes it.
        batches = self.latents.batches(self.batch)
        features, logits, triggers = [], [], []
        for latents, labels in batches[cluster.rank :: cluster.world]:
            images = generate(generator, latents, labels)
            with torch.inference_mode():
                f, g = self.encoder(images)
            features.append(f)
            logits.append(g)
            if self.presence is not None:
                marks = (self.presence.scores(images), self.presence.amplitudes(images))
                triggers.append(torch.stack(marks, 1))
            if tick is not None:
                tick(len(images) * cluster.world)
        figures = self.fidelity.measure(
            self._join(features, cluster, len(batches)), self._join(logits, cluster, len(batches))
        )
        if self.presence is not None:
            figures |= self._presence(self._join(triggers, cluster, len(batches)))
        return figures

    def _presence(self, triggers: Tensor) -> dict[str, float]:
        """How often the trigger stands in the images, and how strongly."""
        assert self.presence is not None
        scores, amplitudes = triggers.unbind(1)
        found = int((scores >= self.presence.threshold).sum())
        low, high = wilson(found, len(scores))
        return {
            "presence": found / len(scores),
            "presence_low": low,
            "presence_high": high,
            "presence_amplitude": float(amplitudes.median()),
        }

    def _join(self, parts: list[Tensor], cluster: Cluster, batches: int) -> Tensor:
        """Parts computed batch by batch on all ranks, in the order of the batches, on the CPU."""
        mine = [part.cpu() for part in parts]
        gathered = cluster.all_gather_objects(mine)
        return torch.cat([gathered[i % cluster.world][i // cluster.world] for i in range(batches)])
