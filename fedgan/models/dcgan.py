"""A DCGAN-shaped conditional pair without normalisation layers.

BatchNorm statistics would be client data that travels with the weights and can be poisoned, so
neither network has any; PixelNorm steadies the generator instead.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedgan.errors import UserError
from fedgan.models.base import Generator, ImageShape, LabelEmbedding, Pair


class DCGAN(Pair):
    """Strided convolutions, and a discriminator that reads the label by projection.

    Source: Radford et al. 2016, arXiv 1511.06434; Miyato and Koyama 2018, arXiv 1802.05637. The
    generator grows a learned base, 7x7 for 28 and 224 pixels and 4x4 for 32, 64, 128 and 256, by
    doublings, so that no image is padded or resized.

    Args:
        latent_dim: length of the latent vector.
        embed_dim: length of the generator's label embedding.
        width: channels at the finest hidden resolution; they double towards the base.
        max_width: upper limit of the channels.
        depth: convolutions at each resolution: the strided one and `depth - 1` of 3x3.
    """

    name: ClassVar[str] = "dcgan"

    def __init__(
        self,
        latent_dim: int = 64,
        embed_dim: int = 64,
        width: int = 32,
        max_width: int = 128,
        depth: int = 1,
    ) -> None:
        if min(latent_dim, embed_dim, width, max_width, depth) < 1:
            raise ValueError("latent_dim, embed_dim, width, max_width and depth must be positive")
        self.latent_dim = latent_dim
        self.embed_dim = embed_dim
        self.width = width
        self.max_width = max_width
        self.depth = depth

    def build(self, shape: ImageShape) -> tuple[Generator, nn.Module]:
        base, doublings = base_and_doublings(shape.size)
        widths = [min(self.width * 2**i, self.max_width) for i in range(doublings)]
        coarse_to_fine = widths[::-1]
        generator = DCGANGenerator(
            shape, self.latent_dim, self.embed_dim, base, coarse_to_fine, self.depth
        )
        return generator, DCGANDiscriminator(shape, base, widths, self.depth)


def base_and_doublings(size: int) -> tuple[int, int]:
    """Edge of the learned base and the doublings from it to `size`.

    >>> base_and_doublings(28), base_and_doublings(32), base_and_doublings(224)
    ((7, 2), (4, 3), (7, 5))
    """
    for base in (4, 7):
        doublings = math.log2(size / base) if size > 0 else 0.0
        if doublings >= 2 and doublings.is_integer():
            return base, int(doublings)
    raise UserError(
        f"data.size: dcgan cannot draw {size}x{size} images; "
        "sizes it can: 16, 28, 32, 56, 64, 112, 128, 224, 256"
    )


class PixelNorm(nn.Module):
    """Each pixel's channels to unit mean square (Karras et al. 2018, arXiv 1710.10196, 4.2)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class DCGANGenerator(Generator):
    """Latent and label embedding to a base map, doubled by transposed convolutions, tanh."""

    def __init__(
        self,
        shape: ImageShape,
        latent_dim: int,
        embed_dim: int,
        base: int,
        widths: list[int],
        depth: int,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.embedding = LabelEmbedding(shape.classes, embed_dim)
        self.project = nn.Linear(latent_dim + embed_dim, widths[0] * base * base)
        self.unflatten = nn.Unflatten(1, (widths[0], base, base))
        layers: list[nn.Module] = [PixelNorm(), nn.LeakyReLU(0.2)]
        for width, out in zip(widths, [*widths[1:], None], strict=True):
            for _ in range(depth - 1):
                layers += [nn.Conv2d(width, width, 3, 1, 1), PixelNorm(), nn.LeakyReLU(0.2)]
            if out is not None:
                layers += [nn.ConvTranspose2d(width, out, 4, 2, 1), PixelNorm(), nn.LeakyReLU(0.2)]
        layers += [nn.ConvTranspose2d(widths[-1], shape.channels, 4, 2, 1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        style = torch.cat([latents, self.embedding(labels)], 1)
        images: Tensor = self.layers(self.unflatten(self.project(style)))
        return images


class DCGANDiscriminator(nn.Module):
    """Strided convolutions to a base map h, then w.h + b + embedding(label).h."""

    def __init__(self, shape: ImageShape, base: int, widths: list[int], depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, out in zip([shape.channels, *widths], widths, strict=False):
            layers += [nn.Conv2d(width, out, 4, 2, 1), nn.LeakyReLU(0.2)]
            for _ in range(depth - 1):
                layers += [nn.Conv2d(out, out, 3, 1, 1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        features = widths[-1] * base * base
        self.logit = nn.Linear(features, 1)
        self.embedding = LabelEmbedding(shape.classes, features)
        # At the scale of the linear head's own weights: a unit normal would drown it at the start.
        nn.init.normal_(self.embedding.weight, std=features**-0.5)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        h = self.layers(images)
        logits: Tensor = self.logit(h).squeeze(1) + (h * self.embedding(labels)).sum(1)
        return logits
