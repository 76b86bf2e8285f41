"""What an accused client's generator does that the others' do not, as pictures and words."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgan.defenses._suspicion import SPREADS, Standing
from fedgan.defenses.base import Exhibit
from fedgan.evidence import bands
from fedgan.images import to_uint8

CLOSE = 4
"""Pixels that are cut out to each side of the strongest one."""
FULL = 160
"""Pixels of a part's side, at most, unless the image has more."""
GAP = 8
PLACED = 2.0
"""Times the usual that a map differs by where there is something at a fixed place."""


def exhibit(client: int, standing: Standing, ratios: Tensor, images: Tensor) -> Exhibit:
    """What speaks against a client.

    Args:
        client: its number.
        standing: what is known of it.
        ratios: [w] of its evidence to the median client's, by witness.
        images: mean images of its generator in this round, [groups, C, H, W] in [-1, 1].

    The picture has to the left what its mean image has that the others' have not, accumulated,
    gray where there is no difference; to the right its mean image about the strongest pixel of
    that; each enlarged by a whole factor.
    """
    by_name = dict(zip(SPREADS, ratios.tolist(), strict=False))
    of_maps = max(ratio for name, ratio in by_name.items() if "map" in name)
    is_placed = of_maps > PLACED
    fine = bands(standing.maps).sum(1)  # [groups, C, H, W]
    group = _group(fine.abs().flatten(1).amax(1))
    map_, mean = fine[group], images[group]
    peak = map_.abs().amax(0)
    row, column = divmod(int(peak.argmax()), peak.shape[1])
    height, width = peak.shape
    top, left = (
        min(max(row - CLOSE, 0), height - 2 * CLOSE),
        min(max(column - CLOSE, 0), width - 2 * CLOSE),
    )
    cut = mean[:, top : top + 2 * CLOSE, left : left + 2 * CLOSE]
    among = "in all classes" if group == 0 else f"in class {group - 1}"
    what = f"a pattern at row {row}, column {column}" if is_placed else "other textures than others"
    strength = of_maps if is_placed else max(by_name.values())
    words = f"{what}, {among}, {strength:.1f} times the usual, since round {standing.since}"
    contrast = map_ / peak.max().clamp(min=1e-12)
    parts = [_enlarged(contrast), _enlarged(_stretched(cut))]
    gap = parts[0].new_full((len(mean), parts[0].shape[1], GAP), 255)
    closeup = F.pad(parts[1], (0, 0, 0, parts[0].shape[1] - parts[1].shape[1]), value=255)
    return Exhibit(client, f"client {client}: {words}", torch.cat([parts[0], gap, closeup], 2))


def _group(peaks: Tensor) -> int:
    """The class that stands out from the other classes by itself, or 0 for all of them."""
    classes = peaks[1:]
    alone = len(classes) > 2 and classes.max() > 2 * classes.median()
    return 1 + int(classes.argmax()) if alone else 0


def _stretched(image: Tensor) -> Tensor:
    low, high = image.min(), image.max()
    return 2 * (image - low) / (high - low).clamp(min=1e-12) - 1


def _enlarged(image: Tensor) -> Tensor:
    """[C, H, W] in [-1, 1] to uint8, every pixel a square."""
    factor = max(1, FULL // image.shape[-1])
    large = to_uint8(image[None])[0].cpu()
    return large.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
