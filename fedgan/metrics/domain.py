"""A small classifier of the real train split: quick, and made for the very images it judges."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from fedgan.cache import cache_dir, write_atomically
from fedgan.images import to_float
from fedgan.metrics._shared import digest, own_randomness
from fedgan.metrics.base import Encoder, in_chunks
from fedgan.seeding import derive, torch_generator

WIDTHS = (16, 32, 64, 96)
"""Channels of the stem and the three stages; the last is the number of features."""
BATCH = 64
CHUNK = 64
"""Images at a time on a CPU."""
LEARNING_RATE = 3e-3
ACCURACY_IMAGES = 2000
"""Train images, at most, that the accuracy is taken on."""


class Domain(Encoder):
    """A small CNN classifier fitted to the real train split in seconds, 96 features.

    A strided convolution brings any size from 28 to 224 to about 32 x 32, three stages halve that
    to 4 x 4, and the global average is the feature vector [n, 96]; logits are the K classes'.
    Activations are bounded (ReLU6), so that a generator's noise, which no real image prepared it
    for, gives a large distance and not an absurd one.

    It is fitted by cross entropy (binary, for multi-label labels) with Adam for a fixed number of
    `steps` of 64 images, so a large data set costs what a small one does. It is always fitted on
    the CPU: the same images, seed and number of threads then give the same bytes, wherever it is
    used later. Weights are cached under a hash of all that made them.

    Distances of one data set's `domain` encoder say nothing beside those of another's.

    >>> images = torch.arange(8, dtype=torch.uint8).mul(30).view(8, 1, 1, 1).expand(8, 1, 28, 28)
    >>> encoder = Domain(steps=1)
    >>> encoder.prepare(images, torch.arange(8) // 4, classes=2, seed=0)
    >>> features, logits = encoder(images)
    >>> features.shape, logits.shape
    (torch.Size([8, 96]), torch.Size([8, 2]))
    """

    name: ClassVar[str] = "domain"
    accuracy: float
    """Share of (at most 2000) train images, or of their labels, that it gets right."""
    seed: int
    """The seed it was fitted with."""

    def __init__(self, steps: int = 250) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, found {steps}")
        self.steps = steps

    def prepare(self, train: Tensor, labels: Tensor, classes: int, seed: int) -> None:
        self.seed = seed
        with own_randomness(derive(seed, self.name, "weights")):
            self._network = network(train.shape[1], max(train.shape[2:]), classes)
        settings = f"{self._network} {BATCH} {LEARNING_RATE} {self.steps} {torch.__version__}"
        key = digest(train, labels, seed, settings)
        self._fingerprint = f"{self.name}-{key}"
        path = cache_dir(self.name) / f"{key}.pt"
        if not self._load(path):
            self._fit(train, labels.cpu(), seed)
            self._network.eval()
            self.accuracy = self._accuracy(train, labels.cpu(), seed)
            saved = {"weights": self._network.state_dict(), "accuracy": self.accuracy}
            write_atomically(path, lambda beside: torch.save(saved, beside))
        self._network.eval().requires_grad_(False)

    def to(self, device: torch.device) -> None:
        self._network.to(device)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def details(self) -> dict[str, Any]:
        return {"seed": self.seed, "steps": self.steps, "train_accuracy": self.accuracy}

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        trunk, head = self._network.children()
        features = torch.cat([trunk(to_float(chunk)) for chunk in in_chunks(images, CHUNK)])
        return features, head(features)

    def _load(self, path: Path) -> bool:
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            self._network.load_state_dict(saved["weights"])
            self.accuracy = float(saved["accuracy"])
        except Exception:  # missing, or broken in any of pickle's many ways: fit it again
            return False
        return True

    def _fit(self, train: Tensor, labels: Tensor, seed: int) -> None:
        order = torch_generator(seed, self.name, "batches")
        optimizer = torch.optim.Adam(self._network.parameters(), lr=LEARNING_RATE)
        batch = min(BATCH, len(train))
        chosen = torch.empty(0, dtype=torch.int64)
        for step in range(self.steps):
            if len(chosen) < batch:
                chosen = torch.randperm(len(train), generator=order)
            picked, chosen = chosen[:batch], chosen[batch:]
            images = to_float(train[picked.to(train.device)].cpu())
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * _cosine(step / self.steps)
            optimizer.zero_grad()
            torch.autograd.backward(_loss(self._network(images), labels[picked]))
            optimizer.step()

    def _accuracy(self, train: Tensor, labels: Tensor, seed: int) -> float:
        generator = torch_generator(seed, self.name, "accuracy")
        picked = torch.randperm(len(train), generator=generator)[:ACCURACY_IMAGES]
        _, logits = self(train[picked.to(train.device)].cpu())
        truth = labels[picked]
        right = (logits > 0) == (truth > 0.5) if truth.ndim == 2 else logits.argmax(1) == truth
        return right.float().mean().item()


def network(channels: int, size: int, classes: int) -> nn.Sequential:
    """The classifier: `[0]` maps float images [n, C, H, W] to features, `[1]` those to logits.

    >>> [network(3, size, 2)[0][0].stride[0] for size in (28, 64, 224)]
    [1, 2, 7]
    """
    stride = max(1, size // 32)
    layers: list[nn.Module] = [
        nn.Conv2d(channels, WIDTHS[0], max(3, stride), stride, padding=1, bias=False),
        nn.BatchNorm2d(WIDTHS[0]),
        nn.ReLU6(inplace=True),
    ]
    for before, width in pairwise(WIDTHS):
        layers += [
            nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(inplace=True),
        ]
    trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = nn.Sequential(trunk, nn.Linear(WIDTHS[-1], classes))
    return classifier.to(memory_format=torch.channels_last)


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    if labels.ndim == 2:
        return binary_cross_entropy_with_logits(logits, labels.float())
    return cross_entropy(logits, labels)


def _cosine(done: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * done))
