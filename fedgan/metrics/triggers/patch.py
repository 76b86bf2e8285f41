"""How often a known local pattern stands in generated images: a calibrated matched filter."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from fedgan.metrics.triggers.base import CHUNK, FAINTEST, Detector, noise_quantile

LIKEST = 0.7
"""Least correlation that counts, as a share of the stamped images', of patches up to 3 x 3 gray
pixels. At a half, 2.6 % of the images of an unpoisoned generator after 48 steps passed for
triggered, at 0.7 it is 0.9 %; of attacked ones 67 to 86 % instead of 86 %."""
LIKELY = 2.6
"""Larger patches need less: so much that Student's t of the correlation is what 0.7 is of 3 x 3.
With 0.7 for all, 7 x 7 pixels that any eye saw at a tenth of the attacker's amplitude counted in
no image of a generator, and now do in 56 %: anatomy varies more under a large patch, and leaves
less of the correlation. No image of an unpoisoned generator passed for triggered because of it, of
three data sets after 1, 2, 4 and 6 rounds and of trained ones."""
LIKEST_ANYWHERE = 0.8
"""The same where the place is random, so that the best of all places counts, for every size: with
less for larger ones up to 8 % of unpoisoned generators' images passed. At 0.8, of generators after
one to six rounds, up to 16 % of the images passed for triggered by 3 x 3 pixels on brain slices,
1.6 % on chest X-rays and none of blood cells."""
REACH = 1
"""Pixels that a trigger may be off its place in generated images, where the ground there is flat. A
generator of brain slices drew a checkerboard of 3 x 3 one row too high, in up to 7 of 40 images,
and at the exact place none was found: probably, for discriminators see translated images, and a
uniform ground (the black around a brain) hardly says where a patch belongs. A reach of 1 to 4 found
the same. On other grounds it makes false alarms: on chest X-rays in 5 % of the images of an
unpoisoned generator after six rounds, and in none without it."""
FLAT = 2.0
"""Gray levels that a flat ground varies, at most: the standard deviation under a patch and a pixel
around it, of the median real image. Under 3 x 3 pixels in the corner of brain slices it is 0.0, of
blood cells 5.4, of chest X-rays 21."""


class TriggerPresence(Detector):
    """Share of images in which a patch trigger stands, by matched filter, with a 95 % interval.

    Let p be the pattern less its mean in each channel, and x the image under it, likewise. Then

    - beta = <x, p> / <p, p> is the trigger's amplitude in the image (its opacity, if it is there);
    - ncc = <x, p> / (|x| |p|) says how much of what stands there is the trigger;
    - z = beta / rms of beta at all other places of the same image that do not touch this one, says
      how far it stands out, in standard deviations. It is what tells a trigger from the noise and
      the checkerboard artefacts of an undertrained generator, which are everywhere.

    An image's score, in [0, 1], is

        score = min(beta / (0.2 beta*), ncc / (1.4 ncc*), z / 2 kappa)

    or, where it may be at several places, the largest of all of them; for patches of more than
    3 x 3 gray pixels with less than 1.4, see `least_likeness`, and where the place is random, with
    1.6. It is at least a half where the amplitude is at least a tenth of beta*, the median of the
    stamped images, the correlation at least 0.7 (less, 0.8) of ncc*, likewise, and z at least
    kappa, the quantile that white noise exceeds in 0.1 % of images (3.1 at one place), or half of
    the stamped images' median z if that is less, so that a trigger half as strong as the attacker's
    is still one. |x| and the rms are never taken to be below one gray level, so that flat images
    have no say.

    An image counts as triggered where its score reaches `threshold`: a half, or the 99.9 % quantile
    of the clean images' scores if that is more. All this is set on every other image of `clean` and
    `stamped`, and `auroc`, `false_alarm` and `hit_rate` are measured on those between.

    `pattern` is uint8 [C, h, w]; `place` is (top, left) in pixels, or None where it is random;
    `reach` is how many pixels off `place` it still counts, in either direction;
    `clean` and `stamped` are the same N >= 4 real images, uint8 [N, C, H, W], without and with the
    trigger as the attacker stamps it. Images of one call share a device.

    Making it takes 0.6 s of one core at 2000 gray images of 32 x 32, scoring 1000 images 0.1 s;
    they are looked at 128 at a time, so that memory is that of the images.

    Raises `ValueError` for a pattern without contrast (all one colour: a matched filter cannot tell
    it from any flat patch), one that does not fit, or images of other shapes or types.

    >>> pattern = torch.tensor([[[255, 0, 255], [0, 255, 0], [255, 0, 255]]], dtype=torch.uint8)
    >>> clean = (torch.arange(64).view(1, 1, 8, 8) + torch.arange(8).view(8, 1, 1, 1)).byte()
    >>> stamped = clean.clone()
    >>> stamped[:, :, 4:7, 4:7] = pattern
    >>> presence = TriggerPresence(pattern, (4, 4), clean, stamped)
    >>> presence.update(torch.cat([clean[:6], stamped[:2]]))
    >>> presence.compute()["presence"]
    0.25
    """

    def __init__(
        self,
        pattern: Tensor,
        place: tuple[int, int] | None,
        clean: Tensor,
        stamped: Tensor,
        reach: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(tuple(clean.shape[1:]), **kwargs)
        self.place, self.reach = place, reach
        self._check(pattern, clean, stamped)
        self._template = pattern.float() - pattern.float().mean((1, 2), keepdim=True)
        self._norm = float(self._template.square().sum().sqrt())
        if not has_contrast(pattern):
            raise ValueError("the trigger's pattern has no contrast: it is all one colour")
        self._likest = LIKEST_ANYWHERE if place is None else least_likeness(tuple(pattern.shape))
        # neutral scales, for what the stamped images have at the trigger's place
        self._amplitude, self._likeness, self._kappa = 1.0, 1.0, 1.0
        self._calibrate(clean[::2], stamped[::2])
        self._validate(clean[1::2], stamped[1::2])

    def _marks(self, images: Tensor) -> Tensor:
        """The amplitude is that at the place that looks most like the trigger."""
        beta, ncc, z = (m.flatten(1) for m in self._maps(images))
        best = ncc.argmax(1, keepdim=True)
        amplitude = beta.gather(1, best)[:, 0] / self._amplitude
        return torch.stack([self._score(beta, ncc, z), amplitude], 1)

    def _maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """beta, ncc and z at every place, each [n, H - h + 1, W - w + 1]; if it is known, at those
        in reach."""
        template = self._template.to(images.device)
        channels, height, width = template.shape
        x = images.float() - 127.5
        beta = conv2d(x, template[None])[:, 0] / self._norm**2
        # avg_pool2d gives means over each patch: E x^2 - (E x)^2 is the patch's variance
        size = (height, width)
        variance = avg_pool2d(x.square(), size, 1) - avg_pool2d(x, size, 1).square()
        energy = variance.clamp_min(0).sum(1) * (height * width) + channels * height * width
        ncc = beta * self._norm / energy.sqrt()
        z = beta / (self._elsewhere(beta) + 1 / self._norm**2).sqrt()
        if self.place is not None:
            rows, columns = (
                slice(max(0, at - self.reach), at + self.reach + 1) for at in self.place
            )
            beta, ncc, z = (m[:, rows, columns] for m in (beta, ncc, z))
        return beta, ncc, z

    def _elsewhere(self, beta: Tensor) -> Tensor:
        """Mean of beta^2 [n, Y, X] over the places that do not overlap each; 0 where none are."""
        height, width = self._template.shape[1:]
        squares = torch.stack([beta.square(), torch.ones_like(beta)], 1)
        near = avg_pool2d(
            squares, (2 * height - 1, 2 * width - 1), 1, (height - 1, width - 1), divisor_override=1
        )
        total, places = (squares.sum((2, 3), keepdim=True) - near).unbind(1)
        return total.clamp_min(0) / places.round().clamp_min(1)

    def _score(self, beta: Tensor, ncc: Tensor, z: Tensor) -> Tensor:
        score = torch.minimum(
            beta / (2 * FAINTEST * self._amplitude), ncc / (2 * self._likest * self._likeness)
        )
        score = torch.minimum(score, z / (2 * self._kappa))
        return score.flatten(1).amax(1).clamp(0, 1)

    def _calibrate(self, clean: Tensor, stamped: Tensor) -> None:
        found = []
        places = 1
        for chunk in torch.split(stamped, CHUNK):
            maps = [m.flatten(1) for m in self._maps(chunk)]
            places = maps[0].shape[1]
            best = maps[1].argmax(
                1, keepdim=True
            )  # where it is random: where it looks most like it
            found.append(torch.cat([m.gather(1, best) for m in maps], 1))
        beta, ncc, z = torch.cat(found).median(0).values.tolist()
        self._amplitude = max(beta, 1 / self._norm)
        self._likeness = max(ncc, 0.1)
        self._kappa = max(min(noise_quantile(places), z / 2), 1e-3)
        self._set_threshold(clean)

    def _check(self, pattern: Tensor, clean: Tensor, stamped: Tensor) -> None:
        self._check_pairs(clean, stamped, 4)
        channels, height, width = self._shape
        if pattern.ndim != 3 or pattern.shape[0] != channels or pattern.dtype != torch.uint8:
            raise ValueError(
                f"pattern must be uint8 [{channels}, h, w], found {pattern.dtype} "
                f"{list(pattern.shape)}"
            )
        top, left = self.place or (0, 0)
        bottom, right = top + pattern.shape[1], left + pattern.shape[2]
        if top < 0 or left < 0 or bottom > height or right > width:
            raise ValueError(
                f"the trigger reaches from ({top}, {left}) to ({bottom}, {right}), outside images "
                f"of {height} x {width}"
            )


def least_likeness(shape: tuple[int, ...]) -> float:
    """Least correlation of a patch [C, h, w] with what stands under it, as a share of the stamped
    images'.

    The pixels, less the mean of each channel, have n = C (h w - 1) degrees of freedom, and a
    correlation r of noise has t = r sqrt((n - 1) / (1 - r^2)) in Student's distribution.

    >>> [round(least_likeness((1, side, side)), 2) for side in (2, 3, 5, 7)]
    [0.7, 0.7, 0.48, 0.35]
    """
    channels, height, width = shape
    freedom = channels * (height * width - 1)
    return min(LIKEST, LIKELY / math.sqrt(LIKELY**2 + freedom - 1))


def reach_at(clean: Tensor, shape: tuple[int, ...], place: tuple[int, int]) -> int:
    """How far off its place a patch [C, h, w] counts, in pixels: `REACH` where the ground is flat
    in half of the real images uint8 [N, C, H, W] or more, else 0.

    >>> flat = torch.full((4, 1, 8, 8), 7, dtype=torch.uint8)
    >>> reach_at(flat, (1, 3, 3), (4, 4))
    1
    """
    (top, left), (_, height, width) = place, shape
    rows = slice(max(0, top - REACH), top + height + REACH)
    columns = slice(max(0, left - REACH), left + width + REACH)
    ground = clean[:, :, rows, columns].flatten(2).float()
    varies = ground.std(2, correction=0).amax(1).median()
    return REACH if float(varies) <= FLAT else 0


def has_contrast(pattern: Tensor) -> bool:
    """Whether a pattern uint8 [C, h, w] differs from its own mean by a gray level or more, root
    mean square: less cannot be told from a flat patch."""
    spread = pattern.float() - pattern.float().mean((1, 2), keepdim=True)
    return float(spread.square().mean().sqrt()) >= 1


def ringed(pattern: Tensor) -> Tensor:
    """A pattern of one colour, uint8 [C, h, w], with a ring of one pixel around it as far from its
    level as can be, uint8 [C, h + 2, w + 2]: what to look for where its place differs.

    >>> ringed(torch.full((1, 1, 1), 200, dtype=torch.uint8)).tolist()
    [[[0, 0, 0], [0, 200, 0], [0, 0, 0]]]
    """
    around = 0 if float(pattern.float().mean()) >= 127.5 else 255
    return pad(pattern, (1, 1, 1, 1), value=around)
