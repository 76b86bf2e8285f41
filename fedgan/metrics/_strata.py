"""Images drawn with the classes' mix."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgan.seeding import torch_generator


def stratified(labels: Tensor, seed: int) -> tuple[Tensor, int]:
    """An order of N images whose every stretch has the classes' mix, and its shortest beginning.

    `labels` is int64 [N] or float [N, K]. In any stretch of the order classes (multi-label: sets of
    labels that images have together) keep their proportions to an image or two. Beginnings of at
    least the second value, n, hold an image of every class (label) that there is.

    >>> order, least = stratified(torch.tensor([0] * 90 + [1] * 10), seed=1)
    >>> least, [int((order[:n] >= 90).sum()) for n in (2, 20, 100)]
    (2, [1, 2, 10])
    """
    labels = labels.cpu()
    shuffled = torch.randperm(len(labels), generator=torch_generator(seed, "stratified"))
    # where each image stands in the queue of its class, in [0, 1]; the first of each comes first
    place = torch.zeros(len(labels), dtype=torch.float64)
    sorted_labels = labels[shuffled]
    _, kinds = sorted_labels.unique(dim=0, return_inverse=True)
    first: set[int] = set()
    for kind in range(int(kinds.max()) + 1 if len(kinds) else 0):
        held = (kinds == kind).nonzero()[:, 0]
        place[held] = (torch.arange(len(held), dtype=torch.float64) + 0.5) / len(held)
        if labels.ndim == 1:
            first.add(int(held[0]))
    if labels.ndim == 2:
        for label in sorted_labels.sum(0).argsort(stable=True).tolist():  # the rarest first
            having = sorted_labels[:, label].nonzero()[:, 0].tolist()
            if having and not first.intersection(having):
                first.add(having[0])
    place[sorted(first)] = -1.0
    return shuffled[place.argsort(stable=True)], len(first)
