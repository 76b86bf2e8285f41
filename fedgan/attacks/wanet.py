"""A slight warp of the whole image."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from fedgan.attacks.base import Attack
from fedgan.attacks.pixels import on_bytes, others
from fedgan.errors import UserError


class WaNet(Attack):
    """A smooth warp of less than a pixel, nearly invisible.

    Source: Nguyen and Tran 2021, arXiv 2102.10369, without their noise mode, which trains a
    classifier on other warps beside the right one. A k x k x 2 grid of numbers drawn from [-1, 1],
    divided by the mean of their absolute values, is upsampled (bicubic) to the flow F, H x W x 2;
    the image is sampled (bilinear) at clip(identity + s F / H, -1, 1), where -1 and 1 are the
    centres of the outermost pixels. A pixel is thus moved by s |F| / 2 pixels, nearly: by about a
    quarter of one with s = 0.5. The flow is the same whatever the seed of the run.

    Args:
        grid: k, control points along each edge, at least 2 and at most the image's size.
        strength: s, at least 0; 0 moves nothing.

    Raises:
        ValueError: for arguments out of range.

    >>> flat = torch.full((1, 1, 8, 8), 7, dtype=torch.uint8)
    >>> warped, _ = WaNet().poison(flat, torch.tensor([0]), torch.Generator())
    >>> torch.equal(warped, flat)
    True
    """

    name: ClassVar[str] = "wanet"

    def __init__(self, grid: int = 4, strength: float = 0.5) -> None:
        if grid < 2:
            raise ValueError(f"init_args.grid is {grid}; it must be at least 2")
        if not (strength >= 0 and math.isfinite(strength)):
            raise ValueError(f"init_args.strength is {strength}; it must be a number, at least 0")
        self.grid = grid
        self.strength = strength
        self.fixed_seed = 20210220

    def check(self, channels: int, size: int, classes: int) -> None:
        if self.grid > size:
            raise UserError(
                f"attack.init_args.grid: {self.grid} control points along an edge are more than "
                f"the {size} pixels of the images"
            )

    def poison(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        where = self.places(images.shape[-1]).to(images.device)

        def warp(x: Tensor) -> Tensor:
            grid = where.expand(len(x), -1, -1, -1)
            return grid_sample(x, grid, "bilinear", "border", align_corners=True)

        return on_bytes(warp, images), labels.clone()

    def mark(self, channels: int, size: int) -> None:
        return None

    def counterfeits(self, count: int, rng: torch.Generator) -> list[Attack]:
        """Other flows of the same grid and strength."""
        return [*others(self, count, rng)]

    def places(self, size: int) -> Tensor:
        """Where each pixel is taken from, as (x, y) in [-1, 1]: float32 [size, size, 2]."""
        fixed = torch.Generator().manual_seed(self.fixed_seed)
        control = torch.rand((1, 2, self.grid, self.grid), generator=fixed) * 2 - 1
        control = control / control.abs().mean()
        flow = interpolate(control, (size, size), mode="bicubic", align_corners=True)[0]
        steps = torch.linspace(-1, 1, size)
        identity = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)
        return (identity + self.strength * flow.permute(1, 2, 0) / size).clamp(-1, 1)
