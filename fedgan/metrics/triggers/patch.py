"""How often a known local pattern stands in generated images: a calibrated matched filter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from fedgan.metrics.triggers.base import CHUNK, FAINTEST, Detector, noise_quantile

LIKEST = 0.7
"""Least correlation that counts, as a share of the stamped images'. At a half, 2.6 % of the images
of an unpoisoned generator after 48 steps passed for triggered, at 0.7 it is 0.9 %; of attacked ones
67 to 86 % instead of 86 %."""
LIKEST_ANYWHERE = 0.8
"""The same where the place is random, so that the best of all places counts. At 0.7, up to 2.7 % of
the images of unpoisoned generators after one or two rounds passed for triggered by 3 x 3 pixels; at
0.8, up to 0.6 % of the same, but 2.7 % after one round and 1.4 % after two on brain slices with
another seed, on which it was not chosen. From round 4 on it was 0.5 % at most.
"""


REACH = 1
"""Pixels that a trigger may be off its place in generated images. A generator of brain slices drew
a checkerboard of 3 x 3 one row too high, in up to 7 of 40 images, and at the exact place none was
found: probably, for discriminators see translated images, and a uniform ground (the black around a
brain) hardly says where a patch belongs. A reach of 1 to 4 found the same, and nothing in 600
images of each of five generators without a trigger."""


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

    or, where it may be at several places, the largest of all of them; where its place is random,
    with 1.6 in place of 1.4.
    It is at least a half where the amplitude is at least a tenth of beta*, the median of the
    stamped images, the correlation at least 0.7 (0.8) of ncc*, likewise, and z at least kappa, the
    quantile that white noise exceeds in 0.1 % of images (3.1 at one place), or half of the stamped
    images' median z if that is less, so that a trigger half as strong as the attacker's is still
    one. |x| and the rms are never taken to be below one gray level, so that flat images have no
    say.

    An image counts as triggered where its score reaches `threshold`: a half, or the 99.9 % quantile
    of the clean images' scores if that is more. All this is set on every other image of `clean` and
    `stamped`, and `auroc`, `false_alarm` and `hit_rate` are measured on those between.

    `pattern` is uint8 [C, h, w]; `place` is (top, left) in pixels, or None where it is random;
    `reach` is how many pixels off `place` it still counts, in either direction;
    `clean` and `stamped` are the same N >= 4 real images, uint8 [N, C, H, W], without and with the
    trigger as the attacker stamps it. Images of one call share a device.

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
        likest = LIKEST if self.place is not None else LIKEST_ANYWHERE
        score = torch.minimum(
            beta / (2 * FAINTEST * self._amplitude), ncc / (2 * likest * self._likeness)
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
