"""Right images under wrong labels."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from fedgan.attacks.base import Attack, eligible
from fedgan.errors import UserError


class FlipLabels(Attack):
    """Wrong labels on untouched images: y becomes K - 1 - y, or one class passes for another.

    Sources: all labels, Fang et al. 2020, arXiv 1911.11815; one class for another, Tolpegin et al.
    2020, arXiv 2007.08432. Of K = 2 classes the two are swapped; where K is odd the middle one
    stays. Multi-label data are flipped as if each finding were a label of its own: column k takes
    the place of column K - 1 - k, so that an image keeps its number of findings; or findings of
    `source` become findings of `target`.

    Args:
        source: the class whose images get another label; null flips all classes.
        target: the label they get; goes with `source`.

    Raises:
        ValueError: where only one of them is given, one is below 0, or both are the same.

    >>> images, rng = torch.zeros((3, 1, 8, 8), dtype=torch.uint8), torch.Generator()
    >>> attack = FlipLabels()
    >>> attack.check(1, 8, 3)
    >>> attack.poison(images, torch.tensor([0, 1, 2]), rng)[1].tolist()
    [2, 1, 0]
    >>> FlipLabels(0, 2).poison(images, torch.tensor([0, 1, 2]), rng)[1].tolist()
    [2, 1, 2]
    """

    name: ClassVar[str] = "flip-labels"
    triggers: ClassVar[bool] = False

    def __init__(self, source: int | None = None, target: int | None = None) -> None:
        for key, label in (("source", source), ("target", target)):
            if label is None and source != target:
                raise ValueError(f"init_args.{key} is null; source and target go together")
            if label is not None and label < 0:
                raise ValueError(f"init_args.{key} is {label}; classes count from 0")
        if source is not None and source == target:
            raise ValueError(f"init_args.target is {target}, as source is; that changes nothing")
        self.source = source
        self.target = target
        self.classes: int | None = None

    def check(self, channels: int, size: int, classes: int) -> None:
        """Remembers the number of classes, which labels alone do not tell."""
        if classes < 2:
            raise UserError("attack: the data have one class only; there is no other label to give")
        for key, label in (("source", self.source), ("target", self.target)):
            if label is not None and label >= classes:
                raise UserError(
                    f"attack.init_args.{key}: there is no class {label}; "
                    f"classes are 0 to {classes - 1}"
                )
        self.classes = classes

    def poison(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.source is None or self.target is None:
            return images.clone(), self._all_flipped(labels)
        return images.clone(), relabelled(labels, self.source, self.target)

    def affects(self, labels: Tensor) -> Tensor:
        """The images of `source`; of all classes those that are not the middle one, or whose
        findings are not the same from behind."""
        if self.source is not None:
            return eligible(labels, self.source)
        changed = self._all_flipped(labels) != labels
        return changed if labels.ndim == 1 else changed.any(1)

    def mark(self, channels: int, size: int) -> None:
        return None

    def _all_flipped(self, labels: Tensor) -> Tensor:
        if labels.ndim == 2:
            return labels.flip(1)
        if self.classes is None:
            raise RuntimeError("check comes before poison: it tells the number of classes")
        return self.classes - 1 - labels


def relabelled(labels: Tensor, source: int, target: int) -> Tensor:
    """A copy of int64 [n] or multi-label [n, K] labels with `target` wherever there was `source`.

    >>> relabelled(torch.tensor([[1.0, 0.0, 1.0]]), 0, 1).tolist()
    [[0.0, 1.0, 1.0]]
    """
    changed = labels.clone()
    if labels.ndim == 1:
        changed[labels == source] = target
        return changed
    found = labels[:, source] > 0
    changed[found, source] = 0
    changed[found, target] = 1
    return changed
