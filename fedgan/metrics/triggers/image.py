"""How often a known trigger that covers the image stands in generated ones: a whitened filter, held
against counterfeits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fedgan.metrics.triggers.base import FAINTEST, Detector, auroc, noise_quantile
from fedgan.metrics.triggers.filter import Features, Filter, energies, in_chunks, pixels

GOOD = 0.999
"""AUROC at which pixels are enough and energies are not tried."""
BLUR = 0.6
"""Standard deviation, in pixels, of the blur that a filter must not answer to."""
NOISE = 6.0
"""Standard deviation, in gray levels, of the noise that it must not answer to."""


class ImagePresence(Detector):
    """Share of images in which a trigger that covers the image stands, with a 95 % interval.

    Let f be features of an image (below), m their mean over clean real images, S their covariance
    there, shrunk towards a multiple of the identity, and d what the trigger adds on average. Then

    - w.(f - m) with w = S^-1 d / (d.S^-1 d) is of all linear measures that rise by 1 where the
      trigger is the one with the least spread (a matched filter; Fisher's discriminant). Here it
      must also answer 0 to what all counterfeits (below) add on average, to blur and to noise:
      they are what generators are bad at, and no sign of this trigger. Without, all images of
      unpoisoned generators after one and two rounds passed for blended (brain slices), and 12 % of
      those of a trained one for warped (chest X-rays); with, 1.0 % at most, in three data sets,
      and 2.0 % of one of two other flows. It costs power: held-out AUROCs of the warp are 0.9990
      (chest X-rays), 0.9998 (brain slices) and 0.9969 (blood cells) instead of 0.9997 and more;
    - every counterfeit, the same kind of trigger with other random choices, which nobody has used,
      has a filter of its own, less its share of w, so that the real trigger leaves it alone;
    - t - mean t_j, where t and t_j are the answers of the trigger's filter and the counterfeits' to
      this image, in standard deviations of clean real images, is the trigger's amplitude: beta is
      this, scaled to a median of 0 in clean real images and 1 in stamped ones;
    - z = (t - mean t_j) / max(1, std t_j) says how far the trigger stands out. It is what tells it
      from the blur and the artefacts of an undertrained generator, which look like any counterfeit
      as much as like the trigger.

    An image's score in [0, 1] is min(beta / 0.2, z / 2 kappa): at least a half where the amplitude
    is at least a tenth of the attacker's and z at least kappa, 3.1 (white noise exceeds it in 0.1 %
    of images), or half of the stamped images' median z if that is less. An image counts as
    triggered where its score reaches `threshold`: a half, or the 99.9 % quantile of clean images'
    scores if that is more.

    The features are the pixels, for a trigger that adds the same to every image (a pattern,
    stripes), or else, where these do not separate held-out images (AUROC under 0.999), `energies`,
    for one that changes texture (a warp: moving by a fraction d of a pixel damps a frequency v by
    |1 - d + d e^iv|, by another d in every place). The features that separate better are kept.

    Filters are made on the first half of the images, medians, standard deviations and threshold set
    on the third quarter, and `auroc`, `false_alarm`, `hit_rate` and `faint_hit_rate` measured on
    the last. Making it takes 1 to 3 s of one core at 4000 gray images of 32 x 32 and 32
    counterfeits of 64 images each, up to 4 s at coloured ones, and some 4 bytes per image and
    feature; scoring 1000 images, 0.2 s.

    Source: matched filters, e.g. Kay 1998, "Fundamentals of statistical signal processing II",
    ch. 4; the comparison with decoys is this project's own.

    Args:
        clean: real images, uint8 [N, C, H, W], in random order; N is 8 or more.
        stamped: the same with the trigger.
        counterfeits: of each counterfeit, the first images of `clean` with it instead,
            uint8 [m, C, H, W], m at most N // 2. Two or more.

    Raises:
        ValueError: for images of other shapes or types, too few images or counterfeits, or a
            trigger that changes nothing.

    >>> rng = torch.Generator().manual_seed(0)
    >>> clean = torch.randint(60, 180, (40, 1, 8, 8), generator=rng).byte()
    >>> patterns = torch.randint(-40, 40, (9, 1, 8, 8), generator=rng)
    >>> stamped, *fakes = ((clean + pattern).byte() for pattern in patterns)
    >>> presence = ImagePresence(clean, stamped, [fake[:10] for fake in fakes])
    >>> presence.update(torch.cat([clean[:6], stamped[:2]]))
    >>> presence.compute()["presence"]
    0.25
    """

    features: str
    """`pixels` or `energies`: what it looks at."""

    def __init__(
        self, clean: Tensor, stamped: Tensor, counterfeits: Sequence[Tensor], **kwargs: Any
    ) -> None:
        super().__init__(tuple(clean.shape[1:]), **kwargs)
        self._check_pairs(clean, stamped, 8)
        self._check_counterfeits(counterfeits, len(clean) // 2)
        if torch.equal(clean, stamped):
            raise ValueError("the trigger changes none of the images")
        half, last = len(clean) // 2, len(clean) * 3 // 4
        best, shown = -1.0, None
        for name, features in (("pixels", pixels), ("energies", energies)):
            tried = _fitted(features, clean[:half], stamped[:half], counterfeits)
            tried.set_scales(clean[half:last], stamped[half:last])
            (_, before), (_, after) = tried(clean[half:last]), tried(stamped[half:last])
            separated = auroc(before, after)
            if separated > best:
                best, shown, self.features, self._filter = separated, after, name, tried
            if best >= GOOD:
                break
        assert shown is not None
        self._kappa = max(min(noise_quantile(), float(shown.median()) / 2), 1e-3)
        self._set_threshold(clean[half:last])
        self._validate(clean[last:], stamped[last:])

    def _marks(self, images: Tensor) -> Tensor:
        amplitude, z = self._filter(images)
        score = torch.minimum(amplitude / (2 * FAINTEST), z / (2 * self._kappa)).clamp(0, 1)
        return torch.stack([score, amplitude], 1)

    def _check_counterfeits(self, counterfeits: Sequence[Tensor], most: int) -> None:
        if len(counterfeits) < 2:
            raise ValueError(f"two counterfeits or more are needed, found {len(counterfeits)}")
        for one in counterfeits:
            self._check_images("counterfeits", one)
            if not 0 < len(one) <= most:
                raise ValueError(f"counterfeits must be 1 to {most} images each, found {len(one)}")


def _fitted(
    features: Features, clean: Tensor, stamped: Tensor, counterfeits: Sequence[Tensor]
) -> Filter:
    """The filter of a trigger that answers 0 to what all counterfeits have in common, to blur and
    to noise."""
    seen = in_chunks(features, clean)

    def adds(images: Tensor) -> Tensor:
        return (in_chunks(features, images) - seen[: len(images)]).mean(0)

    fakes = torch.stack([adds(one) for one in counterfeits])
    nuisances = torch.stack([fakes.mean(0), adds(blurred(clean)), adds(noisy(clean))])
    return Filter(features, seen, torch.cat([adds(stamped)[None], fakes]), nuisances)


def blurred(images: Tensor) -> Tensor:
    """uint8 images [n, C, H, W] as a generator that has not learnt the finest detail draws them."""
    from torchvision.transforms.v2.functional import gaussian_blur

    soft: Tensor = gaussian_blur(images.float(), [5, 5], [BLUR])
    return soft.round().byte()


def noisy(images: Tensor) -> Tensor:
    """uint8 images [n, C, H, W] with noise, the same for the same images."""
    rng = torch.Generator().manual_seed(0)
    noise = NOISE * torch.randn(images.shape, generator=rng)
    return (images.float() + noise).clamp(0, 255).round().byte()
