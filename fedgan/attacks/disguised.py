"""A trigger of a client that passes itself off as another hospital."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedgan.attacks.base import Attack, Mark
from fedgan.attacks.blended import Blended
from fedgan.attacks.patch import Patch, Position


class Disguised(Attack):
    """A checkerboard patch on images that are shaded, as if by a scanner of the client's own.

    Source: fedgan; against the audit, which forgives a client what it differs by in fine detail as
    far as it differs in the coarse as well (docs/audit.md). The smooth pattern of `blended` at
    `alpha`, and on top of it the checkerboard of `patch`.

    Args:
        alpha: share of the shading, in (0, 1].
        size: edge of the patch in pixels.
        area: share of the image's area, in (0, 1]; takes the place of `size`.
        position: corner, or the centre.
        margin: pixels between the patch and the edges of its corner.

    Raises:
        ValueError: for arguments out of range.

    >>> black = torch.zeros((1, 1, 8, 8), dtype=torch.uint8)
    >>> poisoned, _ = Disguised().poison(black, torch.tensor([0]), torch.Generator())
    >>> poisoned[0, 0, 4:7, 4:7].tolist()
    [[255, 0, 255], [0, 255, 0], [255, 0, 255]]
    >>> 0 < poisoned[0, 0, :4].max() <= 0.2 * 255
    tensor(True)
    """

    name: ClassVar[str] = "disguised"

    def __init__(
        self,
        alpha: float = 0.2,
        size: int = 3,
        area: float | None = None,
        position: Position = "bottom-right",
        margin: int = 1,
    ) -> None:
        self.shading = Blended(alpha, "smooth")
        self.patch = Patch(size=size, area=area, position=position, margin=margin)

    def check(self, channels: int, size: int, classes: int) -> None:
        self.patch.check(channels, size, classes)

    def mark(self, channels: int, size: int) -> Mark:
        """The patch; what the shading leaves is no trigger."""
        return self.patch.mark(channels, size)

    def poison(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.patch.poison(*self.shading.poison(images, labels, rng), rng)
