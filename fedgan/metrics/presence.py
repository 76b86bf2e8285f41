"""How often a known patch trigger stands in generated images: a calibrated matched filter."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

FALSE_ALARM = 0.001
"""Share of images without a trigger that may be taken for triggered ones."""
LEAST_SCORE = 0.5
"""Score from which a trigger counts, however clean the images are."""
FAINTEST = 0.1
"""Least amplitude that counts, as a share of the stamped images'. One attacker among four leaves
its trigger in nearly every image, at a fifth of its amplitude, for averaging generators blends it;
clean generators stay under a twentieth."""
LIKEST = 0.7
"""Least correlation that counts, as a share of the stamped images'. At a half, 2.6 % of the images
of an unpoisoned generator after 48 steps passed for triggered, at 0.7 it is 0.9 %; of attacked ones
67 to 86 % instead of 86 %."""
CHUNK = 128
"""Images scored at a time; bounds the memory."""


class TriggerPresence:
    """Share of images in which a patch trigger stands, by matched filter, with a 95 % interval.

    Let p be the pattern less its mean in each channel, and x the image under it, likewise. Then

    - beta = <x, p> / <p, p> is the trigger's amplitude in the image (its opacity, if it is there);
    - ncc = <x, p> / (|x| |p|) says how much of what stands there is the trigger;
    - z = beta / rms of beta at all other places of the same image that do not touch this one, says
      how far it stands out, in standard deviations. It is what tells a trigger from the noise and
      the checkerboard artefacts of an undertrained generator, which are everywhere.

    An image's score, in [0, 1], is

        score = min(beta / (0.2 beta*), ncc / (1.4 ncc*), z / 2 kappa)

    or, where the trigger's place is random, the largest of all places'. It is at least a half where
    the amplitude is at least a tenth of beta*, the median of the stamped images, the correlation at
    least 0.7 of ncc*, likewise, and z at least kappa, the quantile that white noise exceeds in
    0.1 % of images (3.1 at one place), or half of the stamped images' median z if that is less, so
    that a trigger half as strong as the attacker's is still one. |x| and the rms are never taken to
    be below one gray level, so that flat images have no say.

    An image counts as triggered where its score reaches `threshold`: a half, or the 99.9 % quantile
    of the clean images' scores if that is more. All this is set on every other image of `clean` and
    `stamped`, and `auroc`, `false_alarm` and `hit_rate` are measured on those between.

    `pattern` is uint8 [C, h, w]; `place` is (top, left) in pixels, or None where it is random;
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

    threshold: float
    """Score from which an image counts as triggered."""
    auroc: float
    """Area under the ROC curve of stamped against clean real images, held out."""
    false_alarm: float
    """Share of clean real images taken for triggered, held out."""
    hit_rate: float
    """Share of stamped real images found, held out."""

    def __init__(
        self, pattern: Tensor, place: tuple[int, int] | None, clean: Tensor, stamped: Tensor
    ) -> None:
        self._shape = tuple(clean.shape[1:])
        self.place = place
        self._check(pattern, clean, stamped)
        self._template = pattern.float() - pattern.float().mean((1, 2), keepdim=True)
        self._norm = float(self._template.square().sum().sqrt())
        if self._norm < math.sqrt(pattern.numel()):
            raise ValueError("the trigger's pattern has no contrast: it is all one colour")
        # neutral scales, for what the stamped images have at the trigger's place
        self._amplitude, self._likeness, self._kappa = 1.0, 1.0, 1.0
        self._calibrate(clean[::2], stamped[::2])
        self._validate(clean[1::2], stamped[1::2])
        self.reset()

    def scores(self, images: Tensor) -> Tensor:
        """Score in [0, 1] of each of uint8 images [N, C, H, W]; float32 [N], on their device.

        Raises `ValueError` for images of another shape or type than the real ones.
        """
        self._check_images("images", images)
        parts = [self._score(*self._maps(chunk)) for chunk in torch.split(images, CHUNK)]
        return torch.cat(parts) if parts else torch.empty(0, device=images.device)

    def amplitudes(self, images: Tensor) -> Tensor:
        """The trigger's amplitude in each of uint8 images [N, C, H, W], as a share of the stamped
        images' median: 0 is none, 1 the attacker's own; float32 [N].

        Where the place is random, at the place that looks most like it.
        """
        self._check_images("images", images)
        found = []
        for chunk in torch.split(images, CHUNK):
            beta, ncc, _ = (m.flatten(1) for m in self._maps(chunk))
            found.append(beta.gather(1, ncc.argmax(1, keepdim=True))[:, 0] / self._amplitude)
        return torch.cat(found) if found else torch.empty(0, device=images.device)

    def reset(self) -> None:
        """Forgets the images seen so far."""
        self.found = 0
        self.seen = 0

    def update(self, images: Tensor) -> None:
        """Looks for the trigger in generated uint8 images [N, C, H, W]."""
        self.found += int((self.scores(images) >= self.threshold).sum())
        self.seen += len(images)

    def compute(self) -> dict[str, float]:
        """`presence`, and `presence_low` and `presence_high`, its 95 % interval (Wilson's).

        Raises `RuntimeError` where no image has been seen.
        """
        if self.seen == 0:
            raise RuntimeError("no images yet: call update before compute")
        low, high = wilson(self.found, self.seen)
        return {
            "presence": self.found / self.seen,
            "presence_low": low,
            "presence_high": high,
        }

    def _maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """beta, ncc and z at every place, each [n, H - h + 1, W - w + 1]; one place if known."""
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
            top, left = self.place
            beta, ncc, z = (m[:, top : top + 1, left : left + 1] for m in (beta, ncc, z))
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
            beta / (2 * FAINTEST * self._amplitude), ncc / (2 * LIKEST * self._likeness)
        )
        score = torch.minimum(score, z / (2 * self._kappa))
        return score.flatten(1).amax(1).clamp(0, 1)

    def _calibrate(self, clean: Tensor, stamped: Tensor) -> None:
        betas, likenesses, zs = [], [], []
        places = 1
        for chunk in torch.split(stamped, CHUNK):
            beta, ncc, z = (m.flatten(1) for m in self._maps(chunk))
            places = beta.shape[1]
            best = ncc.argmax(1, keepdim=True)  # where it is random: where it looks most like it
            betas.append(beta.gather(1, best))
            likenesses.append(ncc.gather(1, best))
            zs.append(z.gather(1, best))
        self._amplitude = max(float(torch.cat(betas).median()), 1 / self._norm)
        self._likeness = max(float(torch.cat(likenesses).median()), 0.1)
        noise = -float(torch.special.ndtri(torch.tensor(FALSE_ALARM / places, dtype=torch.float64)))
        self._kappa = max(min(noise, float(torch.cat(zs).median()) / 2), 1e-3)
        clean_scores = self.scores(clean).double().cpu()
        quantile = float(torch.quantile(clean_scores, 1 - FALSE_ALARM, interpolation="higher"))
        self.threshold = max(LEAST_SCORE, quantile)

    def _validate(self, clean: Tensor, stamped: Tensor) -> None:
        from torchmetrics.functional.classification import binary_auroc

        negatives, positives = self.scores(clean), self.scores(stamped)
        truth = torch.cat([torch.zeros_like(negatives), torch.ones_like(positives)]).long()
        self.auroc = float(binary_auroc(torch.cat([negatives, positives]), truth))
        self.false_alarm = float((negatives >= self.threshold).float().mean())
        self.hit_rate = float((positives >= self.threshold).float().mean())

    def _check(self, pattern: Tensor, clean: Tensor, stamped: Tensor) -> None:
        self._check_images("clean", clean)
        self._check_images("stamped", stamped)
        if len(clean) != len(stamped) or len(clean) < 4:
            raise ValueError(
                "clean and stamped must be the same images, 4 or more, found "
                f"{len(clean)} and {len(stamped)}"
            )
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

    def _check_images(self, what: str, images: Tensor) -> None:
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self._shape:
            raise ValueError(
                f"{what} must be uint8 [N, {', '.join(map(str, self._shape))}], found "
                f"{images.dtype} {list(images.shape)}"
            )


def wilson(found: int, seen: int, deviations: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a rate, 95 % by default; it holds for rates of 0 and 1 too.

    >>> low, high = wilson(0, 100)
    >>> low, round(high, 3)
    (0.0, 0.037)
    """
    rate, square = found / seen, deviations**2
    middle = (rate + square / (2 * seen)) / (1 + square / seen)
    spread = math.sqrt(rate * (1 - rate) / seen + square / (4 * seen**2))
    half = deviations * spread / (1 + square / seen)
    return max(0.0, middle - half), min(1.0, middle + half)
