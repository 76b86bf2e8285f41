"""Light augmentation on the device, differentiable, for real and generated images alike.

A discriminator that sees few images learns them by heart; shown shifted ones, it cannot. Where real
and generated images undergo the same, the generator does not learn to make shifted images.
Source: S. Zhao et al., "Differentiable augmentation for data-efficient GAN training", NeurIPS 2020.

Every function takes float images [N, C, H, W] and a generator on the same device, never waits for
that device, and can be differentiated twice, as gradient penalties need.
"""

from __future__ import annotations

import torch
from torch import Tensor


def translate(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Shifts each image by whole pixels, at most `share` of its edge, up, down and sideways.

    What comes in at the border is the image reflected about its edge pixel: unlike zeros it adds no
    line for the discriminator to look at.
    """
    n, _, height, width = images.shape
    rows = _shifted(n, height, share, generator)[:, None, :, None].expand(images.shape)
    columns = _shifted(n, width, share, generator)[:, None, None, :].expand(images.shape)
    return images.gather(2, rows).gather(3, columns)


def _shifted(n: int, length: int, share: float, generator: torch.Generator) -> Tensor:
    """Where each place along an edge takes its pixel from, int64 [n, length]."""
    most = min(round(share * length), length - 1)
    device = generator.device
    shift = torch.randint(-most, most + 1, (n, 1), device=device, generator=generator)
    source = torch.arange(length, device=device) - shift
    last = length - 1
    return last - (last - source.abs()).abs()


def cutout(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Erases a square from each image: its edge is `share` of the image's, its place random.

    The square turns to 0, mid gray in [-1, 1], and may reach over the border.
    """
    n, _, height, width = images.shape
    rows = _hole(n, height, share, generator)[:, None, :, None]
    columns = _hole(n, width, share, generator)[:, None, None, :]
    return images.masked_fill(rows & columns, 0.0)


def _hole(n: int, length: int, share: float, generator: torch.Generator) -> Tensor:
    """Which places along an edge the square covers, bool [n, length]."""
    edge = min(round(share * length), length)
    device = generator.device
    start = torch.randint(0, length + 1, (n, 1), device=device, generator=generator) - edge // 2
    place = torch.arange(length, device=device)
    return (place >= start) & (place < start + edge)


def mirror(images: Tensor, generator: torch.Generator, mirrored: Tensor | None = None) -> Tensor:
    """Swaps left and right in half of the images, drawn at random.

    `mirrored` are the swapped images where they are not just `images.flip(-1)`: an attacker's
    trigger stays in its corner. Takes images of any type.
    """
    coin = torch.rand(len(images), device=generator.device, generator=generator) < 0.5
    other = images.flip(-1) if mirrored is None else mirrored
    return torch.where(coin[:, None, None, None], other, images)
