"""Whether the generator hands out its training images: nearest neighbours, a copying test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fedgan.errors import UserError
from fedgan.metrics._pairs import Pairs, picture
from fedgan.metrics.base import Encoder
from fedgan.metrics.copying import Cells, cell_centres, data_copying, mann_whitney, near_interval
from fedgan.metrics.fidelity import settings
from fedgan.metrics.measure import Findings, Generated, Measure, Scene
from fedgan.metrics.neighbours import SLACK, Nearest, nearest, row_blocks
from fedgan.seeding import torch_generator

PERCENTILE = 0.01
"""Share of held-out real images that lie as near to a training image as the threshold."""
FEWEST = 100
"""Test images, at least, for a threshold: of fewer none is at their first percentile."""
PAIRS = 8
"""Pairs in the picture."""
NOTE = (
    "A screen, not a privacy guarantee: it sees copies that this encoder takes for near ones, "
    "among the images that were drawn. It does not bound what an attacker could learn of a "
    "training image, and membership may be inferred where nothing is copied. Where the splits "
    "differ in kind (other patients, other slices), held-out images lie farther off than fresh "
    "ones would, and z and the share nearer to training than to held-out images point to "
    "copying that is not there: read them beside those of the val split, memory_*_real."
)


class Memory(Measure):
    """Distances of generated images to training images, against those of held-out real images.

    d(x) is the distance of an image x to its nearest training image in an encoder's features. The
    threshold is the k-th smallest d of the m test images, k = 0.01 (m + 1) rounded down, within
    which k / (m + 1) of fresh images lie on average, 0.01 at most. Figures, for each encoder, here
    called x:

    - `memory_x`: share of generated images with d at most the threshold: about 0.01 where nothing
      is copied; `memory_x_low` and `memory_x_high`, its 95 % interval, which holds the threshold's
      own luck too (`copying.near_interval`): of nothing copied it lies above 0.01 in 2.5 % at most.
      `memory_x_real`: the val images' share. All four are left out below 100 test images.
    - `memory_x_z`: whether generated images lie nearer to training images than test images do
      within cells (k-means of the training features), so that a generator of typical images, which
      have near neighbours everywhere, is not taken for one that copies. Standard normal where d has
      one distribution for both: under -3 is copying, above 3 underfitting. `memory_x_ct` is Meehan
      et al.'s C_T, the mean of the cells' z, of which it is made; `memory_x_z_real` and
      `memory_x_ct_real`: the val images'.
    - `memory_x_nearer`: share of generated images whose nearest neighbour among test images and as
      many training images is a training image (ties count half): a half where nothing is copied;
      `memory_x_nearer_real`: the val images'.

    Details, for each encoder: the threshold; quantiles of the three kinds of distance; the
    Mann-Whitney test that generated images lie nearer to training images than test images do: the
    probability `auc` that a generated image lies farther off than a test image (a half), its 95 %
    interval (DeLong) and the one-sided p-value; the cells, with the p-value of z; and a note on
    what this can and cannot say. Pictures: `memory_x`, the eight generated images that are nearest
    to a training image, below each that image, their distance, and whether it is within the
    threshold.

    The test is of the drawn images given the training images: there the d are independent.

    Args:
        most: training images, at most, that copies are looked for among; drawn by the seed.

    Raises `UserError` in `prepare` where there are no test images. Encodes the splits in
    `prepare`, which is most of its time, and keeps the features in the cache for the next run (9 KB
    an image at 1280 features and 1000 logits); then 0.5 s for 1000 images against 4000 at 1280
    features.

    Source: Meehan, Chaudhuri and Dasgupta, "A Non-Parametric Test to Detect Data-Copying in
    Generative Models" (AISTATS 2020), section 3; DeLong et al. (Biometrics 1988) for the interval.

    >>> Memory(most=0)
    Traceback (most recent call last):
    ValueError: most must be at least 1, found 0
    """

    name: ClassVar[str] = "memory"

    def __init__(self, most: int = 20_000) -> None:
        if most < 1:
            raise ValueError(f"most must be at least 1, found {most}")
        self.most = most
        self._scene: Scene | None = None
        self._known: dict[str, Known] = {}

    def prepare(self, scene: Scene) -> None:
        """Features of the splits, the cells, the threshold, and the val images' figures."""
        if len(scene.test.images) == 0:
            raise UserError("measure memory: there are no test images to compare with")
        self._rows = self._drawn(scene)
        for encoder in scene.encoders:
            self._known[encoder.name] = self._learn(scene, encoder)
        self._scene = scene

    def measure(self, scene: Scene, generated: Generated) -> Findings:
        if self._scene is not scene:
            self.prepare(scene)
        findings = Findings(
            details={
                "notes": [NOTE],
                "settings": {**settings(scene), "training_images": len(self._rows)},
            }
        )
        for i, encoder in enumerate(scene.encoders):
            scene.progress("memory", i, len(scene.encoders))
            known = self._known[encoder.name]
            features, _ = generated.seen(encoder)
            found = _search(scene, features, known.sides)
            name = f"memory_{encoder.name}"
            for ending, value in known.figures(found).items():
                findings.figures[f"{name}{ending}"] = value
            findings.details[encoder.name] = known.details(found)
            if known.rank == 0 and i == 0:
                findings.details["notes"].append(known.why_not())
            findings.pictures[name] = picture(
                self._pairs(scene, generated.images, encoder.name, found.train)
            )
        scene.progress("memory", len(scene.encoders), len(scene.encoders))
        return findings

    def _drawn(self, scene: Scene) -> Tensor:
        generator = torch_generator(scene.seed, "memory", "training images")
        n = len(scene.train.images)
        return torch.randperm(n, generator=generator)[: self.most].sort().values

    def _learn(self, scene: Scene, encoder: Encoder) -> Known:
        chosen = scene.train.images[self._rows.to(scene.train.images.device)]
        train, _ = scene.encode_real(encoder, chosen)
        test, _ = scene.encode_real(encoder, scene.test.images)
        (centres,) = scene.share([partial(cell_centres, train, len(test), scene.seed)])
        size = min(len(train), len(test))
        generator = torch_generator(scene.seed, "memory", "as many")
        few, held = (x[torch.randperm(len(x), generator=generator)[:size]] for x in (train, test))
        sides = Sides(train, few, held, centres)
        val = None
        if len(scene.val.images) > 0:
            val = _search(scene, scene.encode_real(encoder, scene.val.images)[0], sides)
        return Known(sides, _search(scene, test, sides), val)

    def _pairs(self, scene: Scene, images: Tensor, encoder: str, found: Nearest) -> Pairs:
        """The generated images that lie nearest to a training image, and that image."""
        chosen = torch.argsort(found.squared, stable=True)[:PAIRS]
        rows = self._rows[found.which[chosen]]
        threshold = self._known[encoder].threshold
        return Pairs(
            above=images[chosen.to(images.device)].cpu(),
            below=scene.train.images[rows.to(scene.train.images.device)].cpu(),
            distances=found.squared[chosen].sqrt().tolist(),
            threshold=None if threshold is None else (SLACK * threshold) ** 0.5,
            images=len(images),
            encoder=encoder,
        )


class Sides(NamedTuple):
    """Features [., F] that neighbours are looked for among."""

    train: Tensor
    few: Tensor
    """Of as many training images as `held` has."""
    held: Tensor
    """Of test images."""
    centres: Tensor
    """Of the cells."""


class Search(NamedTuple):
    """Where n images lie."""

    train: Nearest
    """Among all training images that are looked at."""
    nearer: Tensor
    """1 where one of some training images is nearer than all of as many test images, 0 where not,
    and a half where they are as near, float64 [n]."""
    cell: Tensor
    """Number of the cell, int64 [n]."""


def _search(scene: Scene, features: Tensor, sides: Sides) -> Search:
    """Where features [n, F] lie; blocks of rows are jobs."""
    rows = row_blocks(len(features))
    jobs = [partial(nearest, features[block], side) for side in sides for block in rows]
    parts = scene.share(jobs)
    train, few, held, centres = (
        Nearest(*map(torch.cat, zip(*parts[i : i + len(rows)], strict=True)))
        for i in range(0, len(jobs), len(rows))
    )
    nearer = (few.squared < held.squared).double() + (few.squared == held.squared).double() / 2
    return Search(train, nearer, centres.which)


@dataclass(frozen=True)
class Known:
    """What is known of the real images in one encoder's features, and how others compare."""

    sides: Sides
    test: Search
    """Where the test images lie."""
    val: Search | None

    @property
    def rank(self) -> int:
        """Which of the test images' distances, from 1, the threshold is; 0: there are too few."""
        m = len(self.test.cell)
        return int(PERCENTILE * (m + 1)) if m >= FEWEST else 0

    @property
    def threshold(self) -> float | None:
        """Squared distance that fresh images are within in 1 %; None for too few test images."""
        return float(self.test.train.squared.kthvalue(self.rank).values) if self.rank else None

    def why_not(self) -> str:
        """What to say where there is no threshold."""
        return (
            f"memory_x, the share of near images, is left out: a threshold of {PERCENTILE:.0%} "
            f"needs {FEWEST} test images, and there are {len(self.test.cell)}"
        )

    def near(self, found: Search, threshold: float) -> int:
        """How many images are within the threshold."""
        return int((found.train.squared <= SLACK * threshold).sum())

    def cells(self, found: Search) -> Cells:
        """The test of copying against the test images."""
        ours, theirs = found, self.test
        cells = len(self.sides.centres)
        return data_copying(ours.train.squared, theirs.train.squared, ours.cell, theirs.cell, cells)

    def figures(self, found: Search) -> dict[str, float]:
        """Figures by the ending of their names."""
        cells = self.cells(found)
        figures = {"_z": cells.z, "_ct": cells.ct, "_nearer": float(found.nearer.mean())}
        if self.threshold is not None:
            n, near = len(found.cell), self.near(found, self.threshold)
            low, high = near_interval(near, n, self.rank, len(self.test.cell))
            figures = {"": near / n, "_low": low, "_high": high, **figures}
        if self.val is not None:
            theirs = self.cells(self.val)
            if self.threshold is not None:
                figures["_real"] = self.near(self.val, self.threshold) / len(self.val.cell)
            figures |= {
                "_z_real": theirs.z,
                "_ct_real": theirs.ct,
                "_nearer_real": float(self.val.nearer.mean()),
            }
        return figures

    def details(self, found: Search) -> dict[str, Any]:
        """The tests and the spread of the distances, for the report."""
        kinds = {"generated": found, "test": self.test, "val": self.val}
        lies = mann_whitney(found.train.squared, self.test.train.squared)
        threshold = self.threshold
        return {
            "threshold": None if threshold is None else threshold**0.5,
            "threshold_rank": self.rank or None,
            "within_threshold": None if threshold is None else self.near(found, threshold),
            "distances": {
                kind: _quantiles(search.train.squared.sqrt())
                for kind, search in kinds.items()
                if search is not None
            },
            "mann_whitney": lies._asdict(),
            "cells": self.cells(found)._asdict(),
        }


def _quantiles(values: Tensor) -> dict[str, float]:
    """How distances are spread, by per cent."""
    shares = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.0)
    points = torch.quantile(values, torch.tensor(shares, dtype=values.dtype)).tolist()
    return {f"{100 * share:g}": point for share, point in zip(shares, points, strict=True)}
