"""A small scene of real images, images that stand for generated ones, and quick encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from fedgan.metrics.base import Encoded, Encoder
from fedgan.metrics.fidelity import encode
from fedgan.metrics.measure import Generated, Labelled, Scene
from fedgan.metrics.real import halves


class Averages(Encoder):
    """Local averages as features, 9 for each channel."""

    name: ClassVar[str] = "averages"

    def prepare(self, train: Tensor, labels: Tensor, classes: int, seed: int) -> None: ...

    def to(self, device: torch.device) -> None: ...

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.nn.functional.adaptive_avg_pool2d(images.float() / 64, 3).flatten(1)
        return features, features[:, :4]

    @property
    def fingerprint(self) -> str:
        return "averages"


class Pixels(Averages):
    """Every pixel a feature."""

    name: ClassVar[str] = "pixels"

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = images.float().flatten(1) / 64
        return features, features[:, :4]


class Inceptionlike(Averages):
    name: ClassVar[str] = "inception"


class Given(Generated):
    """Images that are simply there."""

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        self.images, self.labels = images, labels

    def seen(self, encoder: Encoder) -> Encoded:
        return encode(encoder, self.images, 50)

    def draw(self, labels: Tensor, purpose: str) -> Tensor:
        raise NotImplementedError


class Ranks:
    """`share` of so many ranks: each does its jobs in turn, the last rank first."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.jobs = 0

    def __call__(self, jobs: Sequence[Callable[[], Any]]) -> list[Any]:
        self.jobs += len(jobs)
        results: dict[int, Any] = {}
        for rank in reversed(range(self.world)):
            for i in range(rank, len(jobs), self.world):
                results[i] = jobs[i]()
        return [results[i] for i in range(len(jobs))]


@pytest.fixture(scope="session")
def averages() -> Encoder:
    return Averages()


@pytest.fixture(scope="session")
def pixels() -> Encoder:
    return Pixels()


@pytest.fixture(scope="session")
def inceptionlike() -> Encoder:
    return Inceptionlike()


@pytest.fixture(scope="session")
def given() -> type[Generated]:
    return Given


@pytest.fixture(scope="session")
def ranks() -> type[Ranks]:
    return Ranks


@pytest.fixture(scope="session")
def scene_of() -> Callable[..., Scene]:
    """A scene of one process with these training images; labels count up to `classes`."""

    def labelled(images: Tensor, labels: Tensor | None, classes: int) -> Labelled:
        return Labelled(images, torch.arange(len(images)) % classes if labels is None else labels)

    def make(
        train: Tensor,
        labels: Tensor | None = None,
        *,
        test: Tensor | None = None,
        val: Tensor | None = None,
        encoders: tuple[Encoder, ...] = (Averages(),),
        classes: int = 2,
        samples: int | None = None,
        seed: int = 1,
        share: Callable[..., list[Any]] | None = None,
    ) -> Scene:
        n = len(train) // 2 if samples is None else samples
        real = labelled(train, labels, classes)
        chosen = halves(real.labels, n, seed)
        return Scene(
            train=real,
            val=labelled(train[:0] if val is None else val, None, classes),
            test=labelled(train[:0] if test is None else test, None, classes),
            classes=tuple(f"class {i}" for i in range(classes)),
            multi_label=labels is not None and labels.ndim == 2,
            seed=seed,
            samples=n,
            batch_size=50,
            device=torch.device("cpu"),
            encoders=encoders,
            trigger=None,
            share=share or Ranks(1),
            progress=lambda words, done, whole: None,
            history=None,
            halves=lambda encoder: encode(encoder, train[chosen], 50),
            encode=lambda encoder, images: encode(encoder, images, 50),
            encode_real=lambda encoder, images: encode(encoder, images, 50),
        )

    return make
