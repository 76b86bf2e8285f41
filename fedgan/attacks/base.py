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
    triggers: ClassVar[bool] = True
    """Whether it changes images, so that there is something to find in generated ones."""

    @abstractmethod
    def check(self, channels: int, size: int, classes: int) -> None:
        """Raises `UserError` where the attack does not fit images of this shape, or labels of this
        many classes. Called once, before anything is poisoned."""

    @abstractmethod
    def poison(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Poisoned copies of uint8 images [n, C, H, W] and of their labels.

        The inputs stay as they are. `rng` is a generator on the images' device.
        """

    @abstractmethod
    def mark(self, channels: int, size: int) -> Mark | None:
        """The trigger to look for in generated images; None where the attack leaves none that a
        matched filter could find: it covers the whole image, or differs on each."""

    def counterfeits(self, count: int, rng: torch.Generator) -> list[Attack]:
        """`count` attacks of the same kind and strength with other random choices (another pattern,
        another warp), drawn from `rng` on the CPU: triggers that nobody uses, from which a measure
        tells the real one. None, by default: for attacks without a random choice, and for local
        patterns, which are told from the rest of the same image."""
        return []

    def affects(self, labels: Tensor) -> Tensor:
        """Which images with these labels it changes, or whose labels: bool [n]; all by default. A
        poison rate is a share of these. Called after `check`."""
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)

    def part(self, index: int, count: int) -> Attack:
        """What the attacker of number `index` (from 0) among `count` does, where they share the
        work; by default each does all of it. The attack itself poisons with, and marks, the whole.
        """
        return self


class NoAttack(Attack):
    """Every client is benign."""

    name: ClassVar[str] = "none"
    triggers: ClassVar[bool] = False

    def check(self, channels: int, size: int, classes: int) -> None:
        return None

    def poison(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return images.clone(), labels.clone()

    def mark(self, channels: int, size: int) -> Mark | None:
        return None


def eligible(labels: Tensor, only_label: int | None) -> Tensor:
    """Which images may be poisoned: bool [n]. All, or those of one class; of multi-label ones
    [n, K], those that have this label among theirs.

    >>> eligible(torch.tensor([0, 1, 1]), only_label=1).tolist()
    [False, True, True]
    """
    if only_label is None:
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    return labels == only_label if labels.ndim == 1 else labels[:, only_label] > 0


def poison_share(
    attack: Attack,
    images: Tensor,
    labels: Tensor,
    rate: float,
    rng: torch.Generator,
    only_label: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Poisons round(rate * n) of the n images that are `eligible` and that the attack affects,
    chosen at random, and keeps the others; copies."""
    among = (eligible(labels, only_label) & attack.affects(labels)).nonzero()[:, 0]
    count = round(rate * len(among))
    chosen = among[torch.randperm(len(among), generator=rng, device=images.device)[:count]]
    images, labels = images.clone(), labels.clone()
    images[chosen], labels[chosen] = attack.poison(images[chosen], labels[chosen], rng)
    return images, labels
