"""What tells the images of one client's generator from those of the others, by latents that all of
them share: maps of the mean image, and textures wherever in the image they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

BLURS = (0.7, 1.4)
"""Standard deviations in pixels: band k of a map is what the k-th blur takes away from the one
before it. What the last one leaves is not looked at: there honest clients differ."""
SIZES = (3, 4)
"""Sides of the filters that find textures, in pixels: one for the odd, one for the even."""
SCALES = (1, 2)
FLOOR = 1e-3
"""Of a filter's response to images in [-1, 1]; an eighth of a gray level."""
MOST_GROUPS = 10
"""Classes that are looked at by themselves."""


@dataclass(frozen=True)
class Groups:
    """Which samples are looked at together: all of them, and those of each class.

    Args:
        labels: int64 [m], the class that each sample was drawn for; or float {0, 1} [m, K], the
            classes that it has.
        classes: K; of more than `MOST_GROUPS`, neighbouring classes share a group.
    """

    labels: Tensor
    classes: int

    def __len__(self) -> int:
        return 1 + (min(self.classes, MOST_GROUPS) if self.classes > 1 else 0)

    def means(self, values: Tensor) -> Tensor:
        """Means over samples [m, ...]: [number of groups, ...], all samples first; 0 of a group
        that has none. Gradients pass, and the device is not waited for."""
        return (self._shares().to(values) @ values.flatten(1)).view(len(self), *values.shape[1:])

    def _shares(self) -> Tensor:
        """How much each sample counts in each group's mean, [number of groups, m]."""
        members = self.labels.new_ones((1, len(self.labels)), dtype=torch.float32)
        if len(self) > 1:
            has = self.labels
            if has.dim() == 1:
                has = F.one_hot(has, self.classes)
            to_group = (
                torch.arange(self.classes, device=has.device) * (len(self) - 1) // self.classes
            )
            grouped = has.float() @ F.one_hot(to_group, len(self) - 1).float()
            members = torch.cat([members, grouped.clamp(max=1).T])
        return members / members.sum(1, keepdim=True).clamp(min=1)


def describe(images: Tensor, groups: Groups) -> Tensor:
    """All that is kept of a client's samples [m, C, H, W] in [-1, 1]: a vector, of which `split`
    makes mean images and mean textures of each group."""
    return torch.cat([groups.means(images).flatten(), groups.means(textures(images)).flatten()])


def description_size(groups: int, image: tuple[int, int, int]) -> int:
    """Length of what `describe` gives."""
    return groups * (math.prod(image) + _features())


def split(described: Tensor, groups: int, image: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Descriptions [n, S] to mean images [n, groups, C, H, W] and textures [n, groups, K]."""
    pixels = groups * math.prod(image)
    maps = described[:, :pixels].reshape(-1, groups, *image)
    return maps, described[:, pixels:].reshape(-1, groups, _features())


def textures(images: Tensor) -> Tensor:
    """Responses of images [m, C, H, W] to small cosine filters (Ahmed et al. 1974), wherever they
    are: mean, fourth-power mean and largest absolute response of each, at two scales; channels are
    averaged. [m, features].

    The largest responses are what a small patch changes, at whatever place; the mean is what a
    pattern or a warp of the whole image does.
    """
    count, channels = images.shape[:2]
    planes = images.float().reshape(count * channels, 1, *images.shape[2:])
    found = []
    for scale in SCALES:
        small = F.avg_pool2d(planes, scale) if scale > 1 else planes
        for size in SIZES:
            response = F.conv2d(small, _filters(size).to(small)).abs().flatten(2)
            found += [response.mean(2), (response**4).mean(2) ** 0.25, response.amax(2)]
    return torch.cat(found, 1).view(count, channels, -1).mean(1)


def unexplained(deviations: Tensor, reference: Tensor) -> Tensor:
    """Mean images' deviations [n, groups, C, H, W] from a reference [groups, C, H, W], less what
    honest clients' equipment does to the whole image: brightness, contrast, gamma, shift, blur.

    Each of these is, to first order, a fixed image times its strength: a constant, the reference,
    its square, its gradients and its Laplacian. The least-squares combination is taken off.
    """
    n, groups = deviations.shape[:2]
    left = []
    for group in range(groups):
        basis, _ = torch.linalg.qr(_benign(reference[group].double()).T)
        flat = deviations[:, group].reshape(n, -1).double()
        left.append((flat - (flat @ basis) @ basis.T).view_as(deviations[:, group]))
    return torch.stack(left, 1).float()


def unexplained_textures(deviations: Tensor) -> Tensor:
    """Logarithms of textures' deviations [n, groups, features] less their mean over features: what
    another contrast does to all of them alike."""
    return deviations - deviations.mean(2, keepdim=True)


def bands(maps: Tensor) -> Tensor:
    """Maps [..., C, H, W] by fineness: [..., bands, C, H, W], the finest first."""
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    found, before = [], flat
    for blur in BLURS:
        blurred = _blur(flat, blur)
        found.append(before - blurred)
        before = blurred
    stacked = torch.stack(found, 1)  # [planes, bands, 1, H, W]
    shape = maps.shape
    return stacked.view(*shape[:-2], len(BLURS), *shape[-2:]).movedim(-3, -4)


def _benign(image: Tensor) -> Tensor:
    """What the whole of an image [C, H, W] may change by: [6, C H W]."""
    padded = F.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    right, left = padded[:, 1:-1, 2:], padded[:, 1:-1, :-2]
    below, above = padded[:, 2:, 1:-1], padded[:, :-2, 1:-1]
    laplacian = right + left + below + above - 4 * image
    some = [torch.ones_like(image), image, image**2, right - left, below - above, laplacian]
    return torch.stack([one.flatten() for one in some])


def _blur(planes: Tensor, sigma: float) -> Tensor:
    radius = math.ceil(3 * sigma)
    at = torch.arange(-radius, radius + 1, dtype=planes.dtype, device=planes.device)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    mode = "replicate"
    planes = F.conv2d(F.pad(planes, (radius, radius, 0, 0), mode=mode), kernel.view(1, 1, 1, -1))
    return F.conv2d(F.pad(planes, (0, 0, radius, radius), mode=mode), kernel.view(1, 1, -1, 1))


def _filters(size: int) -> Tensor:
    """The cosine filters of a side, without the constant one: [size^2 - 1, 1, size, size]."""
    at = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi / size * (at + 0.5) * at[:, None])
    waves = waves / waves.norm(dim=1, keepdim=True)
    pairs = torch.einsum("ui,vj->uvij", waves, waves).reshape(-1, 1, size, size)
    return pairs[1:].float()


def _features() -> int:
    return len(SCALES) * 3 * sum(size**2 - 1 for size in SIZES)
