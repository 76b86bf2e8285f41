"""What an attack is: something done to a client's images, which leaves a mark to look for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mark:
    """What a matched filter needs to find a trigger: pattern uint8 [C, h, w], and where it stands.

    `place` is (top, left) in pixels, or None where it differs from image to image.
    """

    pattern: Tensor
    place: tuple[int, int] | None


class Attack(ABC):
    """What malicious clients do to their images. The constructor takes the config's `init_args`."""

    name: ClassVar[str]

    @abstractmethod
    def check(self, channels: int, size: int) -> None:
        """Raises `UserError` where the attack does not fit images of this shape."""

    @abstractmethod
    def poison(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Poisoned copies of uint8 images [n, C, H, W] and of their labels.

        The inputs stay as they are. `rng` is a generator on the images' device.
        """

    @abstractmethod
    def mark(self, channels: int, size: int) -> Mark | None:
        """The trigger to look for in generated images; None where the attack leaves none."""


class NoAttack(Attack):
    """Every client is benign."""

    name: ClassVar[str] = "none"

    def check(self, channels: int, size: int) -> None:
        return None

    def poison(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return images.clone(), labels.clone()

    def mark(self, channels: int, size: int) -> Mark | None:
        return None


def poison_share(
    attack: Attack, images: Tensor, labels: Tensor, rate: float, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Poisons round(rate * n) of n images, chosen at random, and keeps the others; copies."""
    count = round(rate * len(images))
    chosen = torch.randperm(len(images), generator=rng, device=images.device)[:count]
    images, labels = images.clone(), labels.clone()
    images[chosen], labels[chosen] = attack.poison(images[chosen], labels[chosen], rng)
    return images, labels
