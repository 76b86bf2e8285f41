"""A pattern over the whole image."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fedgan.attacks.base import Attack
from fedgan.attacks.pixels import blend, on_bytes, others

COARSE = 4
"""Points along each edge that the smooth pattern is drawn through."""


class Blended(Attack):
    """A fixed pattern blended into the whole image.

    Source: blended injection, Chen et al. 2017, arXiv 1712.05526. x' = (1 - alpha) x + alpha k, on
    bytes, for a pattern k of the image's shape, the same whatever the seed of the run.

    Args:
        alpha: share of the pattern, in (0, 1].
        pattern: `random`, levels drawn evenly from 0 to 255 for each pixel and channel, the
            source's random pattern; `smooth`, a bicubic surface in each channel through a grid of
            4 x 4 random points, stretched to 0 to 255.

    Raises:
        ValueError: for an alpha out of range.

    >>> black = torch.zeros((1, 1, 8, 8), dtype=torch.uint8)
    >>> blended, _ = Blended(alpha=0.2).poison(black, torch.tensor([0]), torch.Generator())
    >>> int(blended.max()) <= 0.2 * 255
    True
    """

    name: ClassVar[str] = "blended"

    def __init__(self, alpha: float = 0.2, pattern: Literal["random", "smooth"] = "random") -> None:
        if not 0 < alpha <= 1:
            raise ValueError(f"init_args.alpha is {alpha}; it must be in (0, 1]")
        self.alpha = alpha
        self.pattern = pattern
        self.fixed_seed = 20171215

    def check(self, channels: int, size: int, classes: int) -> None:
        return None

    def poison(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        pattern = self.whole_pattern(images.shape[1], images.shape[-1]).to(images.device)
        return on_bytes(lambda x: blend(x, pattern, self.alpha), images), labels.clone()

    def mark(self, channels: int, size: int) -> None:
        return None

    def counterfeits(self, count: int, rng: torch.Generator) -> list[Attack]:
        """Other patterns of the same kind."""
        return [*others(self, count, rng)]

    def whole_pattern(self, channels: int, size: int) -> Tensor:
        """k: levels in [0, 255], float32 [C, size, size], drawn on the CPU."""
        fixed = torch.Generator().manual_seed(self.fixed_seed)
        if self.pattern == "random":
            return torch.randint(256, (channels, size, size), generator=fixed).float()
        points = torch.rand((1, channels, COARSE, COARSE), generator=fixed)
        surface = interpolate(points, (size, size), mode="bicubic", align_corners=True)[0]
        low, high = surface.amin((1, 2), keepdim=True), surface.amax((1, 2), keepdim=True)
        return (surface - low) / (high - low).clamp_min(1e-6) * 255
