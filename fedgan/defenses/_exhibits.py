"""What an accused client's networks do that the others' do not, as pictures and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgan.defenses._spreads import ALONE, SPREADS
from fedgan.defenses._suspicion import Standing
from fedgan.defenses.base import Exhibit
from fedgan.evidence import bands, filter_of
from fedgan.images import to_uint8

CLOSE = 4
"""Pixels that are cut out to each side of the strongest one, at least."""
MARGIN = 2
FULL = 160
"""Pixels of a part's side, at most, unless the image has more."""
GAP = 8
WHOSE = {
    "generator": "",
    "critic": "its discriminator asks for ",
    "generator in the average": "for its sake the average draws ",
    "critic in the average": "for its sake the averaged discriminator asks for ",
}
PLACED = 2.0
"""Times the usual that a map differs by where there is something at a fixed place: a texture that
is at no fixed place cannot be shown where it is."""


def exhibit(
    client: int,
    standing: Standing,
    ratios: Mapping[str, Tensor],
    images: Tensor,
    groups: Sequence[str],
) -> Exhibit:
    """What speaks against a client.

    Args:
        client: its number.
        standing: what is known of it.
        ratios: of its evidence to the median client's, by view and witness: of the largest entry
            and of the root mean square, [w, 2].
        images: mean images of its generator in this round, [groups, C, H, W] in [-1, 1].
        groups: what they are of, but the first, which is of all: classes.

    The picture has to the left what its networks have that the others' have not, accumulated, gray
    where there is no difference: what its images have in the mean, or how much a place of them
    varies, or what its discriminator asks of images, or the pattern that is more, or less, frequent
    wherever it is. To the right that place is cut out, or the whole where there is none: of its
    mean image, or of what its discriminator asks for more than the others'. Each is enlarged by a
    whole factor.
    """
    found = _strongest(ratios)
    told = standing.evidence[found.view].total
    maps, whose = bands(told.maps).sum(1), WHOSE[found.view]
    if found.view != "generator":
        images = _contrast(maps)
    if found.kind == "texture":
        what, left, right = _texture(told.textures, images, groups)
    elif found.kind == "amplitude":
        what, left, right = _placed(told.amplitudes, images, "something in some images", groups)
    elif found.kind == "map":
        what, left, right = _placed(maps, images, "a pattern", groups)
    else:
        what, right = "other details all over", images[0]
        left = _contrast(maps[0])
    words = f"{whose}{what}, {found.times:.1f} times the usual, since round {standing.since}"
    return Exhibit(client, f"client {client}: {words}", _beside(_enlarged(left), _enlarged(right)))


@dataclass(frozen=True)
class _Strongest:
    view: str
    kind: str
    """`map`, `amplitude`, `texture`, or `all over` where there is nothing at one place."""
    times: float


def _strongest(ratios: Mapping[str, Tensor]) -> _Strongest:
    """What a client differs by most. Something at a place comes before a texture, which is at none
    and cannot be shown where it is; and what its own networks do, before what the average does for
    its sake, where they do half as much of it."""
    placed, other = [], []
    for view, own in ratios.items():
        for name, (largest, rms) in zip(SPREADS[view], own.tolist(), strict=False):
            kind = next(kind for kind in ("map", "amplitude", "texture") if kind in name)
            if kind == "texture":
                other.append(_Strongest(view, kind, max(largest, rms)))
            else:
                placed.append(_Strongest(view, kind, largest))
                other.append(_Strongest(view, "all over", rms))
    best = max(placed, key=lambda one: one.times)
    enough = max(PLACED, best.times / 2)
    alone = [one for one in placed if one.view in ALONE and one.times >= enough]
    best = max(alone or [best], key=lambda one: one.times)
    return best if best.times >= PLACED else max(other, key=lambda one: one.times)


def broken(client: int, image: Tensor) -> Exhibit:
    """What there is to show of a client whose networks give what is not finite: gray, in the size
    of `image` [C, H, W]."""
    gray = _enlarged(torch.zeros_like(image))
    words = f"client {client}: what its networks give, or the average with them, is not finite"
    return Exhibit(client, words, _beside(gray, gray))


def _placed(
    maps: Tensor, images: Tensor, what: str, groups: Sequence[str]
) -> tuple[str, Tensor, Tensor]:
    """Of maps [groups, k, H, W]: the words, the map where it is strongest, and what is there."""
    peaks = maps.abs().flatten(1).amax(1)
    among = _among(peaks)
    group = 0 if not among else 1 + int(peaks[1:].argmax())
    strength = maps[group].abs().amax(0)
    row, column = divmod(int(strength.argmax()), strength.shape[1])
    top, bottom, left, right = _about(strength, row, column)
    cut = images[group][:, top:bottom, left:right]
    map_ = maps[group]
    if len(map_) != len(images[group]):  # bands of how much it varies: the one with the peak
        band = int(map_.abs().flatten(1).amax(1).argmax())
        map_ = map_[band].expand_as(images[group])
    words = f"{what} at row {row}, column {column}, {_named(among, groups)}"
    return words, _contrast(map_), _stretched(cut)


def _about(strength: Tensor, row: int, column: int) -> tuple[int, int, int, int]:
    """What is to be cut out about the strongest pixel of a map [H, W]: all that is half as strong
    and no further away than a quarter of the image, and a margin."""
    ends = []
    near = torch.zeros_like(strength, dtype=torch.bool)
    reach = max(CLOSE, strength.shape[0] // 4)
    near[max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1] = True
    strong = (near & (strength > strength.max() / 2)).nonzero()
    for axis, at in enumerate((row, column)):
        size = strength.shape[axis]
        low = min(int(strong[:, axis].min()) - MARGIN, at - CLOSE)
        high = max(int(strong[:, axis].max()) + MARGIN, at + CLOSE) + 1
        ends += [max(0, low), min(size, high)]
    return ends[0], ends[1], ends[2], ends[3]


def _contrast(map_: Tensor) -> Tensor:
    return map_ / map_.abs().max().clamp(min=1e-12)


def _texture(textures: Tensor, images: Tensor, groups: Sequence[str]) -> tuple[str, Tensor, Tensor]:
    """Of textures [groups, features]: the words, the filter, and the mean image."""
    peaks = textures.abs().amax(1)
    among = _among(peaks)
    group = 0 if not among else 1 + int(peaks[1:].argmax())
    feature = int(textures[group].abs().argmax())
    more = "more" if textures[group, feature] > 0 else "less"
    pattern = filter_of(feature).to(images)
    words = f"{more} of a pattern of {len(pattern)} pixels, wherever it is, {_named(among, groups)}"
    return words, pattern.expand(len(images[group]), -1, -1), images[group]


def _named(among: list[int], groups: Sequence[str]) -> str:
    names = [groups[one] for one in among]
    if not names:
        return "in all classes"
    return (
        f"in {'class' if len(names) == 1 and ' ' not in names[0] else 'classes'} {', '.join(names)}"
    )


def _among(peaks: Tensor) -> list[int]:
    """The groups that have a third or more of the strongest one's peak; of [1 + classes], the
    first is that of all together. Empty where all have."""
    strong = peaks[1:] >= peaks[1:].amax() / 3 if len(peaks) > 1 else peaks[:0] > 0
    return [] if strong.all() else strong.nonzero().flatten().tolist()


def _beside(left: Tensor, right: Tensor) -> Tensor:
    """Two pictures [C, H, W] of any height, on white."""
    height = max(left.shape[1], right.shape[1])
    left, right = (F.pad(one, (0, 0, 0, height - one.shape[1]), value=255) for one in (left, right))
    return torch.cat([left, left.new_full((len(left), height, GAP), 255), right], 2)


def _stretched(image: Tensor) -> Tensor:
    low, high = image.min(), image.max()
    return 2 * (image - low) / (high - low).clamp(min=1e-12) - 1


def _enlarged(image: Tensor) -> Tensor:
    """[C, H, W] in [-1, 1] to uint8, every pixel a square."""
    factor = max(1, FULL // max(image.shape[-2:]))
    large = to_uint8(image[None])[0].cpu()
    return large.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
