"""Classifiers as a judge of training images: networks, one recipe to fit them, their scores."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fedgan.images import to_float
from fedgan.metrics import domain
from fedgan.metrics._shared import own_randomness
from fedgan.metrics.base import in_chunks
from fedgan.metrics.measure import Labelled
from fedgan.seeding import derive, torch_generator

BATCH = 64
CHUNK = 64
"""Images at a time on a CPU, when they are only looked at."""
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; then it falls as a cosine."""
SHIFT = 1 / 16
"""Largest shift of a training image, as a share of its side."""
RESNET_SIZES = (28, 64)
"""Smallest and largest side, in pixels, that the adapted ResNet-18 is meant for."""
NETWORKS = ("small", "resnet18")


class Scores(NamedTuple):
    """How well a classifier does on a set of images.

    Attributes:
        accuracy: share of images, or, multi-label, of their labels, that it gets right.
        balanced_accuracy: mean recall of the classes; multi-label: mean over the labels of half of
            sensitivity and specificity. One that knows nothing has 1 / K, or a half.
        auc: area under the ROC curve, mean over classes (one against the rest) or labels. One that
            knows nothing has a half.
        recalls: of each class, or label; nan where the images have none of it.
    """

    accuracy: float
    balanced_accuracy: float
    auc: float
    recalls: tuple[float, ...]


def build(name: str, channels: int, size: int, classes: int, seed: int) -> nn.Module:
    """A fresh classifier of float images [n, C, size, size]; logits [n, K].

    `small` is the `domain` encoder's network (79 thousand weights, any size from 16 to 224);
    `resnet18` is torchvision's with a 3 x 3 stem of stride 1 and no max-pooling, as small images
    want it (11 million weights; He et al., CVPR 2016), some 160 times as much work.

    Raises `ValueError` for another name, or a size that ResNet-18 is not meant for.

    >>> build("small", 1, 28, 2, seed=1)(torch.zeros(3, 1, 28, 28)).shape
    torch.Size([3, 2])
    """
    check(name, size)
    # weights made in inference mode could not be trained
    with torch.inference_mode(False), own_randomness(derive(seed, "classifier", "weights")):
        if name == "small":
            return domain.network(channels, size, classes)
        return _resnet18(channels, classes)


def check(name: str, size: int) -> None:
    """Raises `ValueError`, in one line, for a network that there is none of for `size` pixels."""
    if name not in NETWORKS:
        raise ValueError(f"classifier: '{name}'; allowed: {', '.join(NETWORKS)}")
    low, high = RESNET_SIZES
    if name == "resnet18" and not low <= size <= high:
        raise ValueError(f"classifier: resnet18 takes {low} to {high} pixels, found {size}")


def fit(
    network: nn.Module,
    parts: Sequence[Labelled],
    steps: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Trains `network`, in place, and gives it back in eval mode on `device`.

    Every step takes 64 images, as many from each of `parts`, whatever their sizes: each part is
    gone through in random order again and again, so that 47 images are seen as often in all as
    4700 are. AdamW with decoupled weight decay, learning rate up in a tenth of the steps and down
    by a cosine; images shifted at random by up to a 16th of their side, edges repeated, and never
    mirrored (a heart has a side). Cross entropy, binary for multi-label labels. No validation
    split: the last step's weights are the ones.

    The same network, parts and seed give the same bytes on a CPU with the same number of threads;
    torch's own generators are left alone. A step of `small` takes some 24 ms of one core on gray
    images of 28 pixels, 27 ms on RGB ones of 32.

    Raises `ValueError` where there are no steps or a part has no images.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, found {steps}")
    if not parts or any(len(part.images) == 0 for part in parts):
        raise ValueError("every part to fit on needs an image at least")
    shares = [len(share) for share in torch.arange(BATCH).tensor_split(len(parts))]
    picks = [
        _picks(len(part.images), steps, share, seed, number)
        for number, (part, share) in enumerate(zip(parts, shares, strict=True))
    ]
    most = max(1, round(parts[0].images.shape[-1] * SHIFT))
    shifts = torch.randint(
        -most, most + 1, (steps, BATCH, 2), generator=torch_generator(seed, "classifier", "shifts")
    ).to(device)
    # the caller may be looking at images without gradients, or under autocast
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(torch.device(device).type, enabled=False),
    ):
        _train(network.to(device).train(), parts, picks, shifts)
    return network.eval()


@torch.inference_mode()
def predict(network: nn.Module, images: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Logits [N, K], on the CPU, of uint8 images [N, C, H, W] from a network on `device`."""
    with torch.autocast(torch.device(device).type, enabled=False):
        parts = [
            network(to_float(chunk)).cpu()
            for block in torch.split(images, 1024)  # no more than a block on a small GPU
            for chunk in in_chunks(block.to(device), CHUNK)
        ]
    return torch.cat(parts)


def score(logits: Tensor, labels: Tensor) -> Scores:
    """The scores of logits [N, K] against labels, int64 [N] or, multi-label, {0, 1} [N, K].

    Classes, or labels, that the images have none or nothing but of are left out of the means.

    >>> found = score(torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]]), torch.tensor([0, 1, 1]))
    >>> [round(value, 2) for value in found[:3]]
    [0.67, 0.75, 1.0]
    """
    from torchmetrics.functional.classification import (
        multiclass_accuracy,
        multiclass_auroc,
        multiclass_recall,
        multilabel_accuracy,
        multilabel_auroc,
        multilabel_recall,
        multilabel_specificity,
    )

    count = logits.shape[1]
    # float64: a softmax of float32 makes ties of confident images, and ties cost AUC
    logits = logits.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes without images: left out below
        if labels.ndim == 2:
            truth = labels.round().long()
            held = truth.amax(0) == 1
            counted = known = held & (truth.amin(0) == 0)
            found = logits.sigmoid()
            accuracy = multilabel_accuracy(found, truth, count, average="macro")
            recalls = multilabel_recall(found, truth, count, average=None)
            balanced = (recalls + multilabel_specificity(found, truth, count, average=None)) / 2
            aucs = multilabel_auroc(found, truth, count, average=None)
        else:
            truth = labels.long()
            images = truth.bincount(minlength=count)
            counted = held = images > 0
            known = held & (images < len(truth))
            found = logits.softmax(1)
            accuracy = multiclass_accuracy(found, truth, count, average="micro")
            recalls = balanced = multiclass_recall(found, truth, count, average=None)
            aucs = multiclass_auroc(found, truth, count, average=None)
    recalls = recalls.masked_fill(~held, torch.nan)
    return Scores(
        float(accuracy),
        float(balanced[counted].mean()),
        float(aucs[known].mean()),
        tuple(recalls.tolist()),
    )


def _resnet18(channels: int, classes: int) -> nn.Module:
    from torchvision.models import resnet18

    network = resnet18(weights=None, num_classes=classes)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    module: nn.Module = network.to(memory_format=torch.channels_last)
    return module


def _picks(images: int, steps: int, batch: int, seed: int, part: int) -> Tensor:
    """Which of a part's images each step takes, [steps, batch]: shuffles, one after another."""
    rng = torch_generator(seed, "classifier", "batches", part)
    rounds = -(-steps * batch // images)
    order = torch.cat([torch.randperm(images, generator=rng) for _ in range(rounds)])
    return order[: steps * batch].view(steps, batch)


def _train(
    network: nn.Module, parts: Sequence[Labelled], picks: list[Tensor], shifts: Tensor
) -> None:
    device, steps = shifts.device, len(shifts)
    held = [Labelled(part.images.to(device), part.labels.to(device)) for part in parts]
    picks = [pick.to(device) for pick in picks]
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        LEARNING_RATE,
        total_steps=steps,
        pct_start=WARM_UP,
        cycle_momentum=False,
    )
    for step in range(steps):
        taken = [(part, pick[step]) for part, pick in zip(held, picks, strict=True)]
        images = torch.cat([part.images[pick] for part, pick in taken])
        labels = torch.cat([part.labels[pick] for part, pick in taken])
        logits = network(to_float(shifted(images, shifts[step])))
        optimizer.zero_grad()
        torch.autograd.backward(_loss(logits, labels))
        optimizer.step()
        schedule.step()


def shifted(images: Tensor, by: Tensor) -> Tensor:
    """Images [n, C, H, W], each moved by its own (down, right) pixels of int64 [n, 2], with the
    edge repeated.

    >>> shifted(torch.arange(4).view(1, 1, 1, 4), torch.tensor([[0, 1]])).flatten().tolist()
    [0, 0, 1, 2]
    """
    n, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device) - by[:, :1]
    columns = torch.arange(width, device=images.device) - by[:, 1:]
    rows = rows.clamp(0, height - 1)[:, None, :, None]
    columns = columns.clamp(0, width - 1)[:, None, None, :]
    each = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return images[each, channel, rows, columns]


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.ndim == 2:
        return binary_cross_entropy_with_logits(logits, labels.float())
    return cross_entropy(logits, labels)
