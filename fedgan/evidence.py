"""What tells the images of one client's generator from those of the others, by latents that all of
them share: the mean image, how much each place varies, and textures wherever they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

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
AMPLITUDE_FLOOR = 0.02
"""Of what a place varies by, in images in [-1, 1]; 2.5 gray levels: less is nothing to see."""
MOST_EXPONENT = 120
"""Of two, by which a float32 can be multiplied."""
DEPENDENT = 1e-9
"""Of the largest singular value: one below is rounding."""
AT_ONCE = 12_000
"""Pixels of planes whose textures are found together: so few that all their responses stay in a
core's cache, and in memory that need not be asked of the system anew."""
CPU = torch.device("cpu")
SMALLEST = max(SCALES) * max(SIZES)
"""Side of the smallest images that have all textures, in pixels."""
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

    def named(self, classes: Sequence[str]) -> tuple[str, ...]:
        """What each group but that of all samples is called, after its classes.

        >>> Groups(torch.zeros(1), 12).named("abcdefghijkl")
        ('a to b', 'c', 'd', 'e', 'f', 'g to h', 'i', 'j', 'k', 'l')
        """
        to_group = self._to_group().tolist()
        own = [
            [name for name, to in zip(classes, to_group, strict=True) if to == group]
            for group in range(len(self) - 1)
        ]
        return tuple(" to ".join(dict.fromkeys((names[0], names[-1]))) for names in own)

    def _to_group(self) -> Tensor:
        """The group of each class, from 0, where there are such groups: int64 [K]."""
        return (
            torch.arange(self.classes, device=self.labels.device) * (len(self) - 1) // self.classes
        )

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
            grouped = has.float() @ F.one_hot(self._to_group(), len(self) - 1).float()
            members = torch.cat([members, grouped.clamp(max=1).T])
        return members / members.sum(1, keepdim=True).clamp(min=1)


class Look(NamedTuple):
    """What is kept of a client's samples, or of n clients' with an axis [n] first.

    Attributes:
        maps: mean images, [groups, C, H, W].
        amplitudes: mean squares of each band of fineness at each place, [groups, bands, H, W];
            they tell of what is in some of the images only, where the mean hardly does.
        textures: mean responses to small filters wherever they are, [groups, features].
    """

    maps: Tensor
    amplitudes: Tensor
    textures: Tensor


def look(images: Tensor, groups: Groups, colour: Tensor) -> Look:
    """At a client's samples [m, C, H, W] in [-1, 1], their textures in one `colour` [C]. Gradients
    pass."""
    parts = images, amplitudes(images), textures(images, colour)
    return Look(*(groups.means(part) for part in parts))


def a_colour(numbers: Tensor) -> Tensor:
    """Any direction among channels, from normal numbers [C]: a vector of length 1."""
    return F.normalize(numbers, dim=0)


def logarithms(seen: Look) -> Look:
    """The same maps, and the logarithms of amplitudes and textures: what other contrast makes of
    these is a number that is the same for all."""
    spread = (seen.amplitudes + AMPLITUDE_FLOOR**2).log() / 2
    return Look(seen.maps, spread, (seen.textures + FLOOR).log())


def deviations(told: Look, believed: list[int], about: Look | None = None) -> Look:
    """What a look at n clients, in logarithms, has that the median of those `believed` (positions)
    has not, and that no honest client's equipment explains.

    Args:
        told: of each client, with an axis [n] first.
        believed: who says what is usual.
        about: what equipment may have changed: one look, in logarithms; the median, if not given.
    """
    usual = Look(*(part[believed].double().quantile(0.5, 0).float() for part in told))
    maps, spread, logs = (part - middle for part, middle in zip(told, usual, strict=True))
    about = about or usual
    by_band = spread.flatten(1, 2)[:, :, None]
    return Look(
        unexplained(maps, about.maps),
        unexplained(by_band, about.amplitudes.flatten(0, 1)[:, None]).view_as(spread),
        logs - logs.mean(2, keepdim=True),
    )


def of_unit_strength(asked: Tensor) -> Tensor:
    """What a discriminator asks of samples, gradients of its logits [m, C, H, W], in units of their
    root mean square: a logit has no scale, so that none may be too large or small to be squared."""
    # By a power of two, which costs no digit.
    exponent = torch.frexp(asked.detach().abs().amax()).exponent
    asked = torch.ldexp(asked, -exponent.clamp(-MOST_EXPONENT, MOST_EXPONENT))
    return asked / asked.square().mean().sqrt().clamp(min=torch.finfo(asked.dtype).tiny)


def describe(images: Tensor, groups: Groups, colour: Tensor) -> Tensor:
    """A look at a client's samples as a vector, of which `split` makes a look again."""
    return torch.cat([part.flatten() for part in look(images, groups, colour)])


def description_size(groups: int, image: tuple[int, int, int]) -> int:
    """Length of what `describe` gives."""
    return sum(math.prod(shape) for shape in _shapes(groups, image))


def split(described: Tensor, groups: int, image: tuple[int, int, int]) -> Look:
    """Descriptions [n, S] as a look at n clients."""
    shapes = _shapes(groups, image)
    parts = described.split([math.prod(shape) for shape in shapes], 1)
    return Look(*(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)))


def _shapes(groups: int, image: tuple[int, int, int]) -> list[tuple[int, ...]]:
    return [(groups, *image), (groups, len(BLURS), *image[1:]), (groups, _features())]


def amplitudes(images: Tensor) -> Tensor:
    """Squares of each band of images [m, C, H, W], averaged over channels: [m, bands, H, W]."""
    return bands(images.float()).square().mean(2)


def textures(images: Tensor, colour: Tensor) -> Tensor:
    """Responses of images [m, C, H, W] to small cosine filters (Ahmed et al. 1974), wherever they
    are: mean, fourth-power mean and largest absolute response of each, at two scales, in the
    direction `colour` [C] among channels, [m, features].

    The largest responses are what a small patch changes, at whatever place; the mean is what a
    pattern or a warp of the whole image does. One direction costs a third of three channels; with
    another one in each round none stays unseen.
    """
    planes = torch.einsum("mchw,c->mhw", images.float(), colour)[:, None]
    some = max(1, AT_ONCE // planes[0].numel())
    return torch.cat([_textures(few) for few in planes.split(some)])


def _textures(planes: Tensor) -> Tensor:
    """Of planes [m, 1, H, W]: [m, features]."""
    found = []
    for scale in SCALES:
        small = F.avg_pool2d(planes, scale) if scale > 1 else planes
        for size in SIZES:
            response = F.conv2d(small, _filters(size, small.device)).abs().flatten(2)
            # Not response**4: torch has no quick way for that power.
            fourth = response.square().square()
            found += [response.mean(2), fourth.mean(2) ** 0.25, response.amax(2)]
    return torch.cat(found, 1)


def unexplained(deviations: Tensor, reference: Tensor) -> Tensor:
    """Mean images' deviations [n, groups, C, H, W] from a reference [groups, C, H, W], less what
    honest clients' equipment does to the whole image: brightness, contrast, gamma, shift, blur.

    Each of these is, to first order, a fixed image times its strength: a constant, the reference,
    its square, its gradients and its Laplacian. The least-squares combination is taken off.
    """
    n, groups = deviations.shape[:2]
    left = []
    for group in range(groups):
        basis = _basis(_benign(reference[group].double()))
        flat = deviations[:, group].reshape(n, -1).double()
        left.append((flat - (flat @ basis) @ basis.T).view_as(deviations[:, group]))
    return torch.stack(left, 1).float()


def bands(maps: Tensor) -> Tensor:
    """Maps [..., C, H, W] by fineness: [..., bands, C, H, W], the finest first."""
    height, width = maps.shape[-2:]
    found, before = [], maps
    for blur in BLURS:
        down, across = (_blurring(side, blur, maps.device).to(maps) for side in (height, width))
        blurred = down @ maps @ across.T
        found.append(before - blurred)
        before = blurred
    return torch.stack(found, -4)


def _benign(image: Tensor) -> Tensor:
    """What the whole of an image [C, H, W] may change by: [6, C H W]."""
    padded = F.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    right, left = padded[:, 1:-1, 2:], padded[:, 1:-1, :-2]
    below, above = padded[:, 2:, 1:-1], padded[:, :-2, 1:-1]
    laplacian = right + left + below + above - 4 * image
    some = [torch.ones_like(image), image, image**2, right - left, below - above, laplacian]
    return torch.stack([one.flatten() for one in some])


def _basis(rows: Tensor) -> Tensor:
    """Orthonormal columns that span the same as rows [k, q]: [q, up to k]. Of what depends on the
    others, as all does of an image that is the same everywhere, there is no direction of its own to
    be taken off."""
    left, strengths, _ = torch.linalg.svd(rows.T, full_matrices=False)
    found: Tensor = left[:, strengths > DEPENDENT * strengths[0]]
    return found


@cache
def _blurring(side: int, sigma: float, device: torch.device = CPU) -> Tensor:
    """What a Gaussian blur of `sigma` pixels does to a column of pixels that goes on beyond its
    ends as it ends, float64 [side, side]. A product with it is several times as fast as a
    convolution of one channel. Kept, as `_filters` are."""
    radius = math.ceil(3 * sigma)
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    columns = F.pad(torch.eye(side, dtype=torch.float64), (radius, radius), mode="replicate")
    return F.conv1d(columns[:, None], (kernel / kernel.sum()).view(1, 1, -1))[:, 0].T.to(device)


def filter_of(feature: int) -> Tensor:
    """The filter that a texture, by its place among the features, is the response to: [S, S] in
    pixels of the image, largest absolute entry 1."""
    for scale in SCALES:
        for size in SIZES:
            filters = _filters(size)[:, 0]
            if feature < 3 * len(filters):
                found = filters[feature % len(filters)]
                large = found.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
                return large / large.abs().max()
            feature -= 3 * len(filters)
    raise IndexError("there are fewer textures")


@cache
def _filters(size: int, device: torch.device = CPU) -> Tensor:
    """The cosine filters of a side, without the constant one: [size^2 - 1, 1, size, size]. Kept, as
    a copy to the device in every step of a client that hides would wait for it."""
    at = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi / size * (at + 0.5) * at[:, None])
    waves = waves / waves.norm(dim=1, keepdim=True)
    pairs = torch.einsum("ui,vj->uvij", waves, waves).reshape(-1, 1, size, size)
    return pairs[1:].float().to(device)


def _features() -> int:
    return len(SCALES) * 3 * sum(size**2 - 1 for size in SIZES)
