"""Vertical stripes over the whole image."""

from __future__ import annotations

import copy
import math
from typing import ClassVar

import torch
from torch import Tensor

from fedgan.attacks.base import Attack
from fedgan.attacks.pixels import on_bytes
from fedgan.errors import UserError


class Sig(Attack):
    """A sinusoid over the image's columns: vertical stripes.

    Source: Barni et al. 2019, arXiv 1902.11237, who poison images of one class and leave their
    labels, as `attack.only_label` does. x'[i, j] = clip(x[i, j] + delta * sin(2 pi j f / W)) in
    every row i and channel, on bytes; columns j count from 0.

    Args:
        delta: amplitude in levels of 255, in (0, 255].
        frequency: f, periods across the image, above 0; fewer than half its width in pixels.

    Raises:
        ValueError: for arguments out of range.

    >>> [round(level) for level in Sig(delta=40, frequency=2).stripes(8).tolist()]
    [0, 40, 0, -40, 0, 40, 0, -40]
    """

    name: ClassVar[str] = "sig"

    def __init__(self, delta: float = 40.0, frequency: float = 6.0) -> None:
        if not 0 < delta <= 255:
            raise ValueError(f"init_args.delta is {delta}; it must be in (0, 255]")
        if not (frequency > 0 and math.isfinite(frequency)):
            raise ValueError(f"init_args.frequency is {frequency}; it must be a number above 0")
        self.delta = delta
        self.frequency = frequency
        self.phase = 0.0

    def check(self, channels: int, size: int, classes: int) -> None:
        if 2 * self.frequency >= size:  # at exactly half, every sample falls on a zero
            raise UserError(
                f"attack.init_args.frequency: {self.frequency} periods do not fit images "
                f"{size} pixels wide; there must be fewer than {size / 2:g}"
            )

    def poison(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        stripes = self.stripes(images.shape[-1]).to(images.device)
        return on_bytes(lambda x: x + stripes, images), labels.clone()

    def mark(self, channels: int, size: int) -> None:
        return None

    def counterfeits(self, count: int, rng: torch.Generator) -> list[Attack]:
        """Stripes of the same amplitude, of any phase, and of frequencies from half to twice its
        own, evenly on a logarithmic scale. Above half the image's width they look like lower ones.
        """
        octaves, turns = torch.rand((2, count), generator=rng, dtype=torch.float64).tolist()
        copies = [copy.copy(self) for _ in range(count)]
        for one, octave, turn in zip(copies, octaves, turns, strict=True):
            one.frequency = self.frequency * 2 ** (2 * octave - 1)
            one.phase = 2 * math.pi * turn
        return [*copies]

    def stripes(self, size: int) -> Tensor:
        """What is added to each row, in levels: float32 [size]."""
        columns = torch.arange(size, dtype=torch.float64)
        angles = 2 * math.pi * columns * self.frequency / size + self.phase
        return (self.delta * torch.sin(angles)).float()
