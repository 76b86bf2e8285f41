"""What an accused client's generator does that the others' do not, as pictures and words."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgan.defenses._suspicion import SPREADS, Standing
from fedgan.defenses.base import Exhibit
from fedgan.evidence import bands, filter_of
from fedgan.images import to_uint8

CLOSE = 4
"""Pixels that are cut out to each side of the strongest one."""
FULL = 160
"""Pixels of a part's side, at most, unless the image has more."""
GAP = 8
PLACED = 2.0
"""Times the usual that a map differs by where there is something at a fixed place: a texture that
is at no fixed place cannot be shown where it is."""


def exhibit(client: int, standing: Standing, ratios: Tensor, images: Tensor) -> Exhibit:
    """What speaks against a client.

    Args:
        client: its number.
        standing: what is known of it.
        ratios: [w] of its evidence to the median client's, by witness.
        images: mean images of its generator in this round, [groups, C, H, W] in [-1, 1].

    The picture has to the left what its images have that the others' have not, accumulated, gray
    where there is no difference: of the mean image, or of how much each place varies, or the
    pattern that is more, or less, frequent wherever it is; to the right its mean image, about the
    strongest pixel where there is one. Each is enlarged by a whole factor.
    """
    by_name = dict(zip(SPREADS, ratios.tolist(), strict=False))
    of_map, of_amplitude, of_texture = (
        max(ratio for name, ratio in by_name.items() if kind in name)
        for kind in ("map", "amplitude", "texture")
    )
    if (times := max(of_map, of_amplitude)) < PLACED:
        what, left, right = _texture(standing.textures, images)
        times = of_texture
    elif of_amplitude > 1.5 * of_map:
        what, left, right = _placed(standing.amplitudes, images, "in some images, something")
    else:
        what, left, right = _placed(bands(standing.maps).sum(1), images, "a pattern")
    words = f"{what}, {times:.1f} times the usual, since round {standing.since}"
    return Exhibit(client, f"client {client}: {words}", _beside(_enlarged(left), _enlarged(right)))


def broken(client: int, image: Tensor) -> Exhibit:
    """What there is to show of a client whose images are not finite: gray, in the size of `image`
    [C, H, W]."""
    gray = _enlarged(torch.zeros_like(image))
    words = f"client {client}: what its generator draws is not finite"
    return Exhibit(client, words, _beside(gray, gray))


def _placed(maps: Tensor, images: Tensor, what: str) -> tuple[str, Tensor, Tensor]:
    """Of maps [groups, k, H, W]: the words, the map where it is strongest, and what is there."""
    group = _group(maps.abs().flatten(1).amax(1))
    peak = maps[group].abs().amax(0)
    row, column = divmod(int(peak.argmax()), peak.shape[1])
    height, width = peak.shape
    top, left = (
        min(max(row - CLOSE, 0), height - 2 * CLOSE),
        min(max(column - CLOSE, 0), width - 2 * CLOSE),
    )
    cut = images[group][:, top : top + 2 * CLOSE, left : left + 2 * CLOSE]
    map_ = maps[group]
    if len(map_) != len(
        cut
    ):  # bands of how much it varies: the one with the peak, for all channels
        band = int(map_.abs().flatten(1).amax(1).argmax())
        map_ = map_[band].expand_as(images[group])
    contrast = map_ / peak.max().clamp(min=1e-12)
    return f"{what} at row {row}, column {column}, {_among(group)}", contrast, _stretched(cut)


def _texture(textures: Tensor, images: Tensor) -> tuple[str, Tensor, Tensor]:
    """Of textures [groups, features]: the words, the filter, and the mean image."""
    group = _group(textures.abs().amax(1))
    feature = int(textures[group].abs().argmax())
    more = "more" if textures[group, feature] > 0 else "less"
    pattern = filter_of(feature).to(images)
    words = f"{more} of a pattern of {len(pattern)} pixels, wherever it is, {_among(group)}"
    return words, pattern.expand(len(images[group]), -1, -1), images[group]


def _among(group: int) -> str:
    return "in all classes" if group == 0 else f"in class {group - 1}"


def _group(peaks: Tensor) -> int:
    """The class that stands out from the other classes by itself, or 0 for all of them."""
    classes = peaks[1:]
    alone = len(classes) > 2 and classes.max() > 2 * classes.median()
    return 1 + int(classes.argmax()) if alone else 0


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
    factor = max(1, FULL // image.shape[-1])
    large = to_uint8(image[None])[0].cpu()
    return large.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
