"""How often a known trigger at one place stands in generated images, where its pattern has no
contrast of its own: a bar, a square of one colour, several of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedgan.metrics.triggers.base import CHUNK, FAINTEST, Detector, noise_quantile
from fedgan.metrics.triggers.filter import Filter, in_chunks, pixels

MARGIN = 2
"""Pixels of surround that count for the correlation."""
LIKEST = 0.5
"""Least correlation that counts, as a share of the stamped images'. Without it a bar of 6 pixels on
the brink of the head was seen in 8 % of the images of an unpoisoned generator; at 0.35, in 6 %; at
0.5, in none, and in 0.7 % at most for generators of another seed, on which it was not chosen. It
costs faint bars: at a fifth of the amplitude 11 to 100 % of single ones are found, in place of 16
to 100 %, on three data sets. Where a part is several bars, 0 gave false alarms in 0.3 % at most, of
real and of generated images, and finds 92 to 100 % of them at a fifth in place of 3 to 98 %."""
PLACES = 32
"""Other places of the image, at most, that an image's own is held against."""


class WindowPresence(Detector):
    """Share of images in which a trigger at a known place stands, with a 95 % interval.

    The filter of `ImagePresence` on pixels, w = S^-1 d / (d.S^-1 d): whitening takes in as much of
    the surround as foretells the tissue under the trigger. In the part of counterfeits stand up to
    32 shifts of d around the image, which do not overlap it: the score's z says how far the
    trigger's place stands out among these, each in its own standard deviations on real images, but
    none in less than their median. With ncc the correlation of the image with d, both less their
    means, in the box around the trigger and 2 pixels beyond,

        score = min(beta / 0.2, z / 2 kappa, ncc / (2 likest ncc*))

    where ncc* is the stamped images' median and kappa as in `ImagePresence`. |x| is never taken to
    be below one gray level.

    Filters are made on the first half of the images, scales and threshold set on the third quarter,
    `auroc`, `false_alarm`, `hit_rate` and `faint_hit_rate` measured on the last. Making it takes
    0.5 s of one core at 4000 images of 32 x 32, and some 4 bytes per image and pixel; scoring 1000
    images, 0.1 s.

    Args:
        clean: real images, uint8 [N, C, H, W], in random order; N is 8 or more.
        stamped: the same with the trigger.
        likest: least correlation that counts, as a share of the stamped images'; 0 asks for none,
            for several patterns far apart, where most of the box is the image's own.
        others: the same images with triggers that may stand beside this one and must neither pass
            for it nor hide it, as the other parts of a shared trigger.

    Raises:
        ValueError: for images of other shapes or types, too few, a trigger that changes nothing, or
            one so large that there are no two other places.

    >>> rng = torch.Generator().manual_seed(0)
    >>> clean = torch.randint(60, 90, (40, 1, 12, 12), generator=rng).byte()
    >>> stamped = clean.clone()
    >>> stamped[:, :, 2:4, 2:4] = 255
    >>> presence = WindowPresence(clean, stamped)
    >>> presence.update(torch.cat([clean[:6], stamped[:2]]))
    >>> presence.compute()["presence"]
    0.25
    """

    def __init__(
        self,
        clean: Tensor,
        stamped: Tensor,
        likest: float = LIKEST,
        others: Sequence[Tensor] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(tuple(clean.shape[1:]), **kwargs)
        self._check_pairs(clean, stamped, 8)
        half, last = len(clean) // 2, len(clean) * 3 // 4
        seen = in_chunks(pixels, clean[:half])
        d = (in_chunks(pixels, stamped[:half]) - seen).mean(0)
        change = d.view(self._shape)
        added = torch.stack([d, *(one.flatten() for one in shifts(change))])
        beside = [(in_chunks(pixels, one[:half]) - seen).mean(0) for one in others]
        nuisances = torch.stack(beside) if beside else None
        self._filter = Filter(pixels, seen, added, nuisances, level=True)
        self._filter.set_scales(clean[half:last], stamped[half:last])
        self._box = box(change, MARGIN)
        window = change[self._box]
        self._template = window - window.mean((1, 2), keepdim=True)
        self._template /= self._template.square().sum().sqrt().clamp_min(1e-12)
        ncc = [self._likeness(chunk) for chunk in torch.split(stamped[half:last], CHUNK)]
        self._likest = likest * max(float(torch.cat(ncc).median()), 0.1)
        _, z = self._filter(stamped[half:last])
        self._kappa = max(min(noise_quantile(), float(z.median()) / 2), 1e-3)
        self._set_threshold(clean[half:last])
        self._validate(clean[last:], stamped[last:])

    def _marks(self, images: Tensor) -> Tensor:
        amplitude, z = self._filter(images)
        score = torch.minimum(amplitude / (2 * FAINTEST), z / (2 * self._kappa))
        if self._likest > 0:
            score = torch.minimum(score, self._likeness(images) / (2 * self._likest))
        return torch.stack([score.clamp(0, 1), amplitude], 1)

    def _likeness(self, images: Tensor) -> Tensor:
        """ncc of each image, [n]."""
        window = images[(slice(None), *self._box)].float()
        window = window - window.mean((2, 3), keepdim=True)
        found = (window * self._template.to(window)).sum((1, 2, 3))
        energy = window.square().sum((1, 2, 3)) + self._template.numel()  # a gray level each
        return found / energy.sqrt()


def box(change: Tensor, margin: int = 0) -> tuple[slice, slice, slice]:
    """Where in an image [C, H, W] a mean change is more than a tenth of its largest, as slices of
    all channels, rows and columns, and `margin` pixels beyond as far as the image goes.

    Raises `ValueError` where nothing changes.

    >>> change = torch.zeros(1, 8, 8)
    >>> change[0, 0, 3:5] = 1
    >>> box(change, 1)[1:]
    (slice(0, 2, None), slice(2, 6, None))
    """
    size = change.abs().amax(0)
    if float(size.max()) == 0:
        raise ValueError("the trigger changes none of the images")
    where = (size > 0.1 * size.max()).nonzero()
    (top, left), (bottom, right) = where.amin(0).tolist(), where.amax(0).tolist()
    rows = slice(max(0, top - margin), min(size.shape[0], bottom + 1 + margin))
    columns = slice(max(0, left - margin), min(size.shape[1], right + 1 + margin))
    return slice(None), rows, columns


def is_box(changed: Tensor) -> bool:
    """Whether the pixels that a trigger changes, bool [C, H, W], fill one box.

    >>> changed = torch.zeros(1, 4, 8, dtype=torch.bool)
    >>> changed[0, 1, 0:3] = True
    >>> is_box(changed), is_box(changed | changed.roll(4, 2))
    (True, False)
    """
    _, rows, columns = box(changed.float())
    return bool(changed.any(0)[rows, columns].all())


def shifts(change: Tensor, most: int = PLACES) -> list[Tensor]:
    """A mean change [C, H, W], rolled around the image to places that its box does not overlap: up
    to `most`, spread evenly over them.

    Raises `ValueError` where there are not two.
    """
    _, rows, columns = box(change)
    (high, wide), (height, width) = (
        change.shape[1:],
        (
            rows.stop - rows.start,
            columns.stop - columns.start,
        ),
    )
    apart = [
        (down, right)
        for down in range(high)
        for right in range(wide)
        if height <= down <= high - height or width <= right <= wide - width
    ]
    if len(apart) < 2:
        raise ValueError("the trigger is too large: there is no other place to hold it against")
    count = min(most, len(apart))
    chosen = [apart[math.floor(i * len(apart) / count)] for i in range(count)]
    return [change.roll(one, (1, 2)) for one in chosen]
