"""That the figures follow known harm, on real images: blur, noise, stamps, classes gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.transforms.functional import gaussian_blur

from fedgan.data.brain_mri import BrainMRI
from fedgan.metrics.base import Encoder
from fedgan.metrics.coverage import Coverage
from fedgan.metrics.domain import Domain
from fedgan.metrics.fidelity import Fidelity
from fedgan.metrics.memory import Memory

N = 400


def blurred(images: Tensor, level: float) -> Tensor:
    return gaussian_blur(images, [9, 9], [level, level]) if level else images


def noisy(images: Tensor, level: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + level * noise).round().clamp(0, 255).byte()


def stamped(images: Tensor, level: float) -> Tensor:
    """A checkerboard in the corner of that share of the images."""
    done = images.clone()
    board = (torch.arange(6)[:, None] + torch.arange(6)) % 2 * 255
    done[: round(level * len(images)), :, -7:-1, -7:-1] = board.byte()
    return done


class Edges(Encoder):
    """Brightness and slopes on 4 x 4 places: plain features that nothing was fitted to."""

    name: ClassVar[str] = "edges"

    def prepare(self, train: Tensor, labels: Tensor, classes: int, seed: int) -> None: ...

    def to(self, device: torch.device) -> None: ...

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.float().mean(1, keepdim=True) / 64
        across, down = x.diff(dim=3).abs(), x.diff(dim=2).abs()
        features = torch.cat([adaptive_avg_pool2d(y, 4).flatten(1) for y in (x, across, down)], 1)
        return features, features

    @property
    def fingerprint(self) -> str:
        return "edges"


HARMS: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "blur": (blurred, (0, 0.7, 1.2, 2.0)),
    "noise": (noisy, (0, 10, 25, 60)),
    "stamps": (stamped, (0, 0.3, 0.6, 1.0)),
}


@pytest.fixture(scope="module", params=["brain-mri", "pneumoniamnist", "bccd_32"])
def room(request, real, scene_of, tmp_path_factory) -> Iterator[tuple]:
    """A scene with two encoders, and N training images with labels, of neither half."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDGAN_CACHE", str(tmp_path_factory.mktemp("cache")))
        if request.param == "brain-mri":
            data = BrainMRI(train=3 * N, val=100, test=N).load(None, 32, seed=1)
            train, test = (data.train.images, data.train.labels), (data.test.images,)
        else:
            train, test = real(request.param), real(request.param, "test")
        order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(1))
        images, labels = (part[order] for part in train)
        encoder = Domain(steps=120)
        classes = int(labels.max()) + 1
        encoder.prepare(images[: 3 * N], labels[: 3 * N], classes, seed=1)
        scene = scene_of(
            images[: 2 * N],
            labels[: 2 * N],
            encoders=(encoder, Edges()),
            classes=classes,
            test=test[0][:N],
        )
        yield scene, images[2 * N : 3 * N], labels[2 * N : 3 * N]


@pytest.mark.parametrize("harm", HARMS)
def test_figures_follow_the_harm(room, given, harm: str) -> None:
    """Distances rise with every step, precision and coverage fall."""
    scene, images, labels = room
    change, levels = HARMS[harm]
    measures = Fidelity(), Coverage()
    found = [
        measures[0].measure(scene, given(harmed, labels)).figures
        | measures[1].measure(scene, given(harmed, labels)).figures
        for harmed in (change(images, level) for level in levels)
    ]
    # kd_domain did not: a patch in some radiographs is nothing to an encoder of their classes
    for name in ("fd_domain", "fd_edges", "kd_edges", "kd_edges_worst_class"):
        values = [figures[name] for figures in found]
        assert all(before < after for before, after in pairwise(values)), (name, values)
    assert found[-1]["fd_edges"] > 2 * found[0]["fd_edges"]
    assert found[-1]["coverage_edges"] < found[0]["coverage_edges"]
    assert found[0]["fd_edges_ratio"] < 4
    if harm == "blur":  # which leaves typical images typical: they may well be more precise
        return
    for name in ("precision_edges", "density_edges", "coverage_edges"):
        values = [figures[name] for figures in found]
        assert values == sorted(values, reverse=True), (name, values)
        assert values[-1] < 0.1 * values[0], (name, values)


def test_classes_that_are_gone_are_missed(room, given) -> None:
    """All classes, fewer, one: recall and coverage fall, distances rise, precision stays."""
    scene, images, labels = room
    found = []
    for kept in range(len(scene.classes), 0, -1):
        here = images[labels < kept]
        here = here.repeat(-(-N // len(here)), 1, 1, 1)[:N]
        found.append(
            Coverage().measure(scene, given(here)).figures
            | Fidelity(per_class=False).measure(scene, given(here)).figures
        )
    for name in ("fd_domain", "fd_edges", "kd_edges"):
        values = [figures[name] for figures in found]
        assert all(before < after for before, after in pairwise(values)), (name, values)
    for name in ("recall_domain", "coverage_domain"):
        values = [figures[name] for figures in found]
        assert values == sorted(values, reverse=True), (name, values)
        assert values[-1] < values[0] - 0.1, (name, values)
    assert found[-1]["precision_domain"] > 0.85 * found[0]["precision_domain"]


def test_copies_of_real_images_are_found(room, given) -> None:
    """A quarter of the samples are training images; the rest are not."""
    scene, images, _ = room
    planted = torch.cat([scene.train.images[: N // 4], images[N // 4 :]])
    clean, copied = (Memory().measure(scene, given(images)).figures for images in (images, planted))
    assert clean["memory_domain"] < 0.1
    assert copied["memory_domain"] > clean["memory_domain"] + 0.15
    assert copied["memory_domain_z"] < clean["memory_domain_z"] - 2
    held_out = Memory().measure(scene, given(scene.test.images)).figures
    assert held_out["memory_domain"] == pytest.approx(0.01, abs=0.01)
