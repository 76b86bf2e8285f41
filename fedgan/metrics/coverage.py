"""Fidelity and diversity apart: precision and recall, density and coverage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fedgan.errors import UserError
from fedgan.metrics.fidelity import settings, split_halves
from fedgan.metrics.measure import Findings, Generated, Measure, Scene
from fedgan.metrics.neighbours import SLACK, column_blocks, kth_nearest, row_blocks

Share = Callable[[Sequence[Callable[[], Any]]], list[Any]]
NEIGHBOURS = 5
"""k, as Naeem et al. choose it; Kynkaanniemi et al. take 3, which the floors make up for."""


class Coverage(Measure):
    """How real generated images look (precision, density), how much of the real ones they reach
    (recall, coverage).

    A ball lies around every image, as far as its k-th nearest neighbour of its own kind, in an
    encoder's features. Figures, for each encoder, here called x:

    - `precision_x`: share of generated images inside the ball of any real image;
    - `recall_x`: share of real images inside the ball of any generated image;
    - `density_x`: number of real balls that a generated image lies in, over k, on average; about 1
      for a perfect generator, and not bounded by 1; it is not taken in by one outlier's large ball;
    - `coverage_x`: share of real images whose ball holds a generated image; at k = 5 about
      1 - 2^-5 = 0.97 for a perfect generator;
    - `precision_x_real` and so on: half B of the real images in place of the generated ones, which
      is what a perfect generator would get at this n.

    Real images are half A, n of them, and there are n generated ones (see `Fidelity`). Recall
    trusts the generated images' own balls, so that scattered outliers raise it; coverage does not.
    A collapsed class shows in recall and coverage, a blurred one in precision and density.

    Args:
        neighbours: k. Raises `UserError` in `prepare` where it is not below n.

    Takes 0.5 s of one core at n = 1000 and 1280 features, and as much in `prepare`; grows with n^2.

    Source: Kynkaanniemi et al., "Improved Precision and Recall" (NeurIPS 2019); Naeem et al.,
    "Reliable Fidelity and Diversity Metrics" (ICML 2020), equations 3, 4 and 6.

    >>> Coverage(neighbours=0)
    Traceback (most recent call last):
    ValueError: neighbours must be at least 1, found 0
    """

    name: ClassVar[str] = "coverage"

    def __init__(self, neighbours: int = NEIGHBOURS) -> None:
        if neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, found {neighbours}")
        self.neighbours = neighbours
        self._scene: Scene | None = None
        self._radii: dict[str, Tensor] = {}
        self._floors: dict[str, Overlap] = {}

    def prepare(self, scene: Scene) -> None:
        """The balls of the real images, and the floors."""
        if scene.samples <= self.neighbours:
            raise UserError(
                f"measure coverage: neighbours is {self.neighbours}; it must be below the number "
                f"of images, {scene.samples}"
            )
        for encoder in scene.encoders:
            (a, _), (b, _) = split_halves(scene, encoder)
            self._radii[encoder.name] = radii(a, self.neighbours, scene.share)
            self._floors[encoder.name] = self._overlap(scene, encoder.name, a, b)
        self._scene = scene

    def measure(self, scene: Scene, generated: Generated) -> Findings:
        if self._scene is not scene:
            self.prepare(scene)
        findings = Findings(
            details={"settings": {**settings(scene), "neighbours": self.neighbours}}
        )
        for i, encoder in enumerate(scene.encoders):
            scene.progress("coverage", i, len(scene.encoders))
            (a, _), _ = split_halves(scene, encoder)
            found = self._overlap(scene, encoder.name, a, generated.seen(encoder)[0])
            floor = self._floors[encoder.name]
            for which, value in found._asdict().items():
                findings.figures[f"{which}_{encoder.name}"] = value
            for which, value in floor._asdict().items():
                findings.figures[f"{which}_{encoder.name}_real"] = value
        scene.progress("coverage", len(scene.encoders), len(scene.encoders))
        return findings

    def _overlap(self, scene: Scene, encoder: str, a: Tensor, b: Tensor) -> Overlap:
        theirs = radii(b, self.neighbours, scene.share)
        return overlap(a, b, self._radii[encoder], theirs, self.neighbours, scene.share)


class Overlap(NamedTuple):
    """The four figures of generated images held against real ones."""

    precision: float
    recall: float
    density: float
    coverage: float


class Block(NamedTuple):
    """What some real images have to do with all generated ones: sums that can be added up."""

    hits: Tensor
    """In how many of the real balls each generated image lies, int64 [m]."""
    recalled: int
    """How many of the real images lie in any generated ball."""
    covered: int
    """How many of the real balls hold any generated image."""


def here(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    """Does all jobs in this process: what `share` is where nothing is shared."""
    return [job() for job in jobs]


def radii(features: Tensor, k: int, share: Share = here) -> Tensor:
    """Squared radius of the ball around each of features [n, F], float64 [n].

    Raises `ValueError` where n is not above k.
    """
    jobs = [partial(kth_nearest, features, k, rows) for rows in row_blocks(len(features))]
    return torch.cat(share(jobs))


def overlap(
    real: Tensor, fake: Tensor, real_radii: Tensor, fake_radii: Tensor, k: int, share: Share = here
) -> Overlap:
    """The four figures of features [n, F] and [m, F] with the squared radii of their balls."""
    jobs = [
        partial(_block, real[rows], fake, real_radii[rows], fake_radii)
        for rows in row_blocks(len(real))
    ]
    blocks = share(jobs)
    hits = torch.stack([block.hits for block in blocks]).sum(0)
    return Overlap(
        precision=int((hits > 0).sum()) / len(fake),
        recall=sum(block.recalled for block in blocks) / len(real),
        density=int(hits.sum()) / (k * len(fake)),
        coverage=sum(block.covered for block in blocks) / len(real),
    )


def _block(real: Tensor, fake: Tensor, real_radii: Tensor, fake_radii: Tensor) -> Block:
    hits, recalled, covered = [], [], []
    for start, squared in column_blocks(real, fake):
        inside = squared <= SLACK * real_radii[:, None]
        hits.append(inside.sum(0))
        covered.append(inside.any(1))
        theirs = fake_radii[start : start + squared.shape[1]]
        recalled.append((squared <= SLACK * theirs).any(1))
    return Block(
        torch.cat(hits),
        int(torch.stack(recalled).any(0).sum()),
        int(torch.stack(covered).any(0).sum()),
    )
