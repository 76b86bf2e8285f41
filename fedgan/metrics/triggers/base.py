"""What every way of looking for a trigger shares: scores, thresholds, validation, intervals."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from fedgan.metrics._shared import wilson

FALSE_ALARM = 0.001
"""Share of images without a trigger that may be taken for triggered ones."""
LEAST_SCORE = 0.5
"""Score from which a trigger counts, however clean the images are."""
FAINTEST = 0.1
"""Least amplitude that counts, as a share of the stamped images'. One attacker among four leaves
its trigger in nearly every image, at a fifth of its amplitude, for averaging generators blends it;
clean generators stay under a twentieth."""
FAINT = 0.2
"""Amplitude of a trigger that federated averaging has made faint; `faint_hit_rate` is measured
there."""
CHUNK = 128
"""Images scored at a time; bounds the memory."""


class Detector(Metric):
    """A stream of generated images, and in which of them a known trigger stands.

    A subclass is calibrated and validated on real images when it is made, and gives `marks`. An
    image counts as triggered where its score reaches `threshold`. The state is two counts, which
    are added up over ranks where torchmetrics is asked to (`sync_on_compute`, on by default).
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = None

    found: Tensor
    seen: Tensor
    threshold: float
    """Score from which an image counts as triggered."""
    auroc: float
    """Area under the ROC curve of stamped against clean real images, held out."""
    false_alarm: float
    """Share of clean real images taken for triggered, held out."""
    held_out: int
    """How many clean real images that was measured on."""
    hit_rate: float
    """Share of stamped real images found, held out."""
    faint_hit_rate: float
    """Share of them found where the trigger has a fifth of its amplitude: 0.8 of the clean image
    and 0.2 of the stamped one."""

    def __init__(self, shape: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._shape = shape
        self.add_state("found", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def _marks(self, images: Tensor) -> Tensor:
        """Score and amplitude of a chunk of uint8 images, float32 [n, 2], on their device."""

    def marks(self, images: Tensor) -> Tensor:
        """Score in [0, 1] and amplitude of the trigger in each of uint8 images [N, C, H, W], as a
        share of the attacker's own (0 is none); float32 [N, 2], on the images' device.

        Raises `ValueError` for images of another shape or type than the real ones.
        """
        self._check_images("images", images)
        parts = [self._marks(chunk) for chunk in torch.split(images, CHUNK) if len(chunk)]
        return torch.cat(parts) if parts else torch.empty((0, 2), device=images.device)

    def scores(self, images: Tensor) -> Tensor:
        """The first column of `marks`."""
        return self.marks(images)[:, 0]

    def amplitudes(self, images: Tensor) -> Tensor:
        """The second column of `marks`."""
        return self.marks(images)[:, 1]

    def update(self, images: Tensor) -> None:
        """Looks for the trigger in generated uint8 images [N, C, H, W]."""
        self.found = self.found + (self.scores(images) >= self.threshold).sum().to(self.found)
        self.seen = self.seen + len(images)

    def compute(self) -> dict[str, float]:
        """`presence`, and `presence_low` and `presence_high`, its 95 % interval (Wilson's).

        Raises `RuntimeError` where no image has been seen.
        """
        found, seen = int(self.found), int(self.seen)
        if seen == 0:
            raise RuntimeError("no images yet: call update before compute")
        low, high = wilson(found, seen)
        return {"presence": found / seen, "presence_low": low, "presence_high": high}

    def _set_threshold(self, clean: Tensor) -> None:
        """A half, or the 99.9 % quantile of clean real images' scores where that is more."""
        scores = self.scores(clean).double().cpu()
        quantile = float(torch.quantile(scores, 1 - FALSE_ALARM))
        self.threshold = max(LEAST_SCORE, quantile)

    def _validate(self, clean: Tensor, stamped: Tensor) -> None:
        """Measures the finished detector on real images that it has not been made of."""
        negatives, positives = self.scores(clean), self.scores(stamped)
        self.auroc = auroc(negatives, positives)
        self.held_out = len(clean)
        self.false_alarm = float((negatives >= self.threshold).float().mean())
        self.hit_rate = float((positives >= self.threshold).float().mean())
        faint = self.scores(mixed(clean, stamped, FAINT))
        self.faint_hit_rate = float((faint >= self.threshold).float().mean())

    def _check_images(self, what: str, images: Tensor) -> None:
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != self._shape:
            raise ValueError(
                f"{what} must be uint8 [N, {', '.join(map(str, self._shape))}], found "
                f"{images.dtype} {list(images.shape)}"
            )

    def _check_pairs(self, clean: Tensor, stamped: Tensor, least: int) -> None:
        self._check_images("clean", clean)
        self._check_images("stamped", stamped)
        if len(clean) != len(stamped) or len(clean) < least:
            raise ValueError(
                f"clean and stamped must be the same images, {least} or more, found "
                f"{len(clean)} and {len(stamped)}"
            )


def mixed(clean: Tensor, stamped: Tensor, share: float) -> Tensor:
    """uint8 images between clean and stamped ones: (1 - share) x + share x', in bytes."""
    parts = zip(torch.split(clean, CHUNK), torch.split(stamped, CHUNK), strict=True)
    made = [(a.float() * (1 - share) + b.float() * share).round().byte() for a, b in parts]
    return torch.cat(made) if made else clean.clone()


def noise_quantile(places: int = 1) -> float:
    """What the largest of `places` standard normal numbers exceeds at a rate of `FALSE_ALARM`.

    >>> round(noise_quantile(), 2)
    3.09
    """
    rate = torch.tensor(FALSE_ALARM / places, dtype=torch.float64)
    return -float(torch.special.ndtri(rate))


def auroc(negatives: Tensor, positives: Tensor) -> float:
    """Area under the ROC curve of scores [n] and [m]."""
    from torchmetrics.functional.classification import binary_auroc

    truth = torch.cat([torch.zeros_like(negatives), torch.ones_like(positives)]).long()
    return float(binary_auroc(torch.cat([negatives, positives]), truth))
