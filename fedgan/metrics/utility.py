"""What generated images are good for: a classifier trained on them, tested on real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch

from fedgan.errors import UserError
from fedgan.metrics import classifiers
from fedgan.metrics._chart import chart
from fedgan.metrics._table import Comparison, Row, Table, judged, mean_and_std
from fedgan.metrics.arms import (
    Arm,
    Imbalance,
    augmentation_arms,
    percent,
    rebalance_arms,
    synthetic_images,
)
from fedgan.metrics.classifiers import build, fit, predict, score
from fedgan.metrics.measure import Findings, Generated, Labelled, Measure, Scene

METRICS = {"acc": "accuracy", "bal_acc": "balanced_accuracy", "auc": "auc"}
"""Prefix of a figure, and the column of the table that it is the mean of."""
WORDS = "utility: training classifiers"
BALANCING = ("unbalanced", "oversampled", "rebalanced")
"""The arms that differ in how the smaller classes are treated."""


class Utility(Measure):
    """Accuracy on real test images of classifiers trained with and without generated images.

    Arms, each trained from `seeds` seeds by one recipe (`classifiers.fit`: as many steps of 64
    images whatever there is to train on):

    - `real_1`, `real_10`, `real_100`: that per cent of the real training images, stratified, an
      image of every class at least. Each seed draws its own subsets; the smaller lie in the larger;
    - `synthetic`: generated images alone, by default as many as there are real ones, with their
      labels;
    - `both_1`, ...: that per cent of the real images and all the synthetic ones. Half of each batch
      is real and half synthetic: in the mere union a hundred times as many synthetic images would
      leave the real ones unseen;
    - `unbalanced`, `oversampled`, `rebalanced` (`rebalance`): real images whose smallest class
      (the first of equals) is thinned to an `imbalance`-th of the largest, null leaving it as it
      is; smaller classes repeated up to the largest; smaller classes filled up with synthetic ones.

    A seed gives the arms the same initial weights and order, so that gains are paired by seed. The
    spread is the standard deviation over seeds; it does not hold the luck of the test images, which
    all arms share. Nothing is chosen on the validation or the test split.

    The generator has seen ALL training images of all clients (thinned ones too): `both_1` is not
    what synthesis makes of 1 % of the images. It is the federation's promise, a hospital with few
    labels that gets the generator which the others' images have trained.

    Figures, means over seeds, with x standing for `acc`, `bal_acc` and `auc` (macro; per-label
    means where images have several labels):

    - `x_ARM` for each arm; `x_gain_1`, ... = both - real;
    - where the attack changes images: `acc_stamped_synthetic` and `acc_stamped_real` (the largest
      share), on test images that all carry the trigger, with their true labels;
      `acc_drop_synthetic`, `acc_drop_real` = what the trigger costs each; `acc_harm` =
      acc_drop_synthetic - acc_drop_real, what the poisoned generator adds;
    - `minority_recall_ARM` of the last three arms; `rebalance_gain_unbalanced` and
      `rebalance_gain_oversampled` = balanced accuracy of `rebalanced` less theirs.

    Every figure has its `..._std`, left out with one seed. Details: `rows` (a training each),
    `summary` (mean, std and values), `comparisons` (each gain with its 95 % t interval, paired by
    seed), `notes` (what the comparisons show after Holm's correction for being so many, in words),
    `settings`. With 3 seeds only gains many times their spread are shown: repeat more for others.
    Picture: `utility`, what classifiers of each training set score, a dot a seed.

    Of somebody else's images there may be too few of a class for all that. Then the synthetic arms
    take those at hand, with their own labels, and the rebalancing ones are left out; without labels
    there are no figures at all. A note says so.

    Cost: 30 trainings by default, shared out to the ranks: 4 to 5 minutes of one core with `small`
    and 28 to 32 pixels, and memory for a copy of the training images. `resnet18` is for GPUs.

    Source: the augmentation experiment of Jin and Li (Medical Image Analysis 2023); training on
    synthetic and testing on real images: Ravuri and Vinyals (NeurIPS 2019).

    Args:
        classifier: `small`, or `resnet18` (28 to 64 pixels).
        shares: of the real images, in (0, 1].
        seeds: repetitions of every arm.
        steps: of every training.
        synthetic: how many synthetic images; null: as many as training images.
        rebalance: train the three arms on rebalancing too. They are left out where no class is
            smaller than another, and where images have several labels.
        imbalance: largest class over the smallest after thinning, at least 1.

    Raises `ValueError` for arguments that cannot be, and, when it prepares, `UserError` for a class
    without training images, test images of one class only, or a size that `resnet18` does not take.

    >>> Utility(shares=[1.0, 0.1], seeds=2).shares
    [0.1, 1.0]
    """

    name: ClassVar[str] = "utility"

    def __init__(
        self,
        classifier: Literal["small", "resnet18"] = "small",
        shares: Sequence[float] = (0.01, 0.1, 1.0),
        seeds: int = 3,
        steps: int = 300,
        synthetic: int | None = None,
        rebalance: bool = True,
        imbalance: float | None = 10.0,
    ) -> None:
        if classifier not in classifiers.NETWORKS:
            allowed = ", ".join(classifiers.NETWORKS)
            raise ValueError(f"classifier: '{classifier}'; allowed: {allowed}")
        self.shares = sorted(float(share) for share in shares)
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares: {list(shares)}; allowed: numbers in (0, 1], one at least")
        if len({percent(share) for share in self.shares}) < len(self.shares):
            raise ValueError(f"shares: {list(shares)} names one twice")
        for key, value in (("seeds", seeds), ("steps", steps), ("synthetic", synthetic)):
            if value is not None and value < 1:
                raise ValueError(f"{key} must be at least 1, found {value}")
        if imbalance is not None and not (imbalance >= 1 and math.isfinite(imbalance)):
            raise ValueError(f"imbalance must be at least 1, found {imbalance}")
        self.classifier = classifier
        self.seeds = seeds
        self.steps = steps
        self.synthetic = synthetic
        self.rebalance = rebalance
        self.imbalance = imbalance

    def prepare(self, scene: Scene) -> None:
        try:
            classifiers.check(self.classifier, max(scene.train.images.shape[2:]))
        except ValueError as error:
            raise UserError(f"utility: {error}") from None
        train, test = scene.train.labels, scene.test.labels
        held = train.sum(0) if scene.multi_label else train.bincount(minlength=len(scene.classes))
        if not bool((held > 0).all()):
            empty = scene.classes[int(held.argmin())]
            raise UserError(f"utility: there is no training image of class '{empty}'")
        differ = (test != test[:1]).any() if len(test) else torch.tensor(False)
        if not bool(differ):
            raise UserError(
                f"utility: the {len(test)} test images have the same labels; needed: two classes"
            )
        if self.synthetic is not None and self.synthetic < len(scene.classes):
            raise UserError(
                f"utility: synthetic: {self.synthetic} images for {len(scene.classes)} classes; "
                "allowed: one of each at least"
            )

    def measure(self, scene: Scene, generated: Generated) -> Findings:
        self.prepare(scene)
        drawn, words = synthetic_images(scene, generated, self.synthetic)
        notes = [words] if words else []
        if drawn is None:
            return Findings({}, {"notes": notes})
        arms = augmentation_arms(scene, drawn, self.shares, self.seeds)
        imbalance, why_not = self._imbalance(scene)
        if imbalance is not None:
            try:
                arms += rebalance_arms(scene, generated, imbalance, self.seeds)
            except UserError as error:  # of somebody else's images: the other arms need not go
                imbalance, why_not = None, str(error)
                notes.append(f"nothing was rebalanced: {error}")
        stamped = stamped_test(scene)
        scene.progress(WORDS, 0, len(arms))
        jobs = [
            partial(self._job, scene, stamped, imbalance, arm, number, len(arms))
            for number, arm in enumerate(arms, start=1)
        ]
        table = Table(scene.share(jobs))
        figures, comparisons = self._gains(table)
        control = f"real_{percent(self.shares[-1])}"
        for add in (partial(stamped_figures, table, control), partial(balancing_figures, table)):
            more, compared = add()
            figures |= more
            comparisons += compared
        judgements, sentences = judged(comparisons)
        details = {
            "notes": [*notes, *sentences],
            "settings": self._settings(scene, arms),
            "rebalancing": why_not or self._described(scene, imbalance),
            "comparisons": judgements,
            "summary": table.summary(),
            "rows": table.rows,
        }
        chance = 0.5 if scene.multi_label else 1 / len(scene.classes)
        shown = chart(table, len(scene.test.labels), chance, self.seeds)
        return Findings(figures, details, {"utility": shown})

    def _imbalance(self, scene: Scene) -> tuple[Imbalance | None, str]:
        """What there is to balance, or why there is nothing."""
        if not self.rebalance:
            return None, "not asked for"
        if scene.multi_label:
            return None, "images have several labels, so no class can be filled up by itself"
        found = Imbalance.of(scene.train.labels, len(scene.classes), self.imbalance)
        if not bool(found.missing.any()):
            return None, "every class has as many images"
        return found, ""

    def _job(
        self,
        scene: Scene,
        stamped: Labelled | None,
        imbalance: Imbalance | None,
        arm: Arm,
        number: int,
        jobs: int,
    ) -> Row:
        """Trains one classifier and tests it: a row of the table."""
        channels, height, width = scene.train.images.shape[1:]
        fresh = build(self.classifier, channels, max(height, width), len(scene.classes), arm.seed)
        network = fit(fresh, arm.parts(scene.train), self.steps, arm.seed, scene.device)
        labels = scene.test.labels.cpu()
        found = score(predict(network, scene.test.images, scene.device), labels)
        row: Row = {
            "arm": arm.name,
            "share": arm.share,
            "seed": arm.repeat,
            "n_real": arm.n_real,
            "n_synthetic": arm.n_synthetic,
            "accuracy": found.accuracy,
            "balanced_accuracy": found.balanced_accuracy,
            "auc": found.auc,
            "recalls": [None if math.isnan(recall) else recall for recall in found.recalls],
        }
        if stamped is not None:
            marked = score(predict(network, stamped.images, scene.device), labels)
            row["stamped_accuracy"] = marked.accuracy
            row["stamped_balanced_accuracy"] = marked.balanced_accuracy
        if imbalance is not None and arm.name in BALANCING:
            row["minority_recall"] = row["recalls"][imbalance.minority]
        scene.progress(WORDS, number, jobs)
        return row

    def _gains(self, table: Table) -> tuple[dict[str, float], list[Comparison]]:
        """The mean of every arm, and what synthetic images add to each share of the real ones."""
        figures: dict[str, float] = {}
        comparisons = []
        for short, column in METRICS.items():
            for arm in table.arms:
                figures |= mean_and_std(f"{short}_{arm}", table.values(arm, column))
        for share in map(percent, self.shares):
            for short, column in METRICS.items():
                gains = table.differences(f"both_{share}", f"real_{share}", column)
                figures |= mean_and_std(f"{short}_gain_{share}", gains)
                what = f"synthetic images beside {share} % of the real ones"
                comparisons.append(Comparison(what, column, gains))
        return figures, comparisons

    def _settings(self, scene: Scene, arms: list[Arm]) -> dict[str, Any]:
        return {
            "classifier": self.classifier,
            "shares": self.shares,
            "seeds": self.seeds,
            "steps": self.steps,
            "batch": classifiers.BATCH,
            "learning_rate": classifiers.LEARNING_RATE,
            "weight_decay": classifiers.WEIGHT_DECAY,
            "largest_shift": classifiers.SHIFT,
            "real_images": len(scene.train.labels),
            "synthetic_images": arms[0].n_synthetic,
            "test_images": len(scene.test.labels),
            "in_both": "half of each batch real, half synthetic",
        }

    def _described(self, scene: Scene, imbalance: Imbalance | None) -> dict[str, Any]:
        if imbalance is None:
            return {}
        return {
            "minority": scene.classes[imbalance.minority],
            "real_images": dict(zip(scene.classes, imbalance.kept.tolist(), strict=True)),
            "filled_up_with": dict(zip(scene.classes, imbalance.missing.tolist(), strict=True)),
            "imbalance": self.imbalance,
        }


def stamped_test(scene: Scene) -> Labelled | None:
    """The test images with the attack's trigger on every one, and their true labels; None where
    there is no attack or it leaves images as they are."""
    if scene.trigger is None:
        return None
    images = scene.trigger.stamp(scene.test).images
    if torch.equal(images, scene.test.images):
        return None
    return Labelled(images, scene.test.labels)


def stamped_figures(table: Table, control: str) -> tuple[dict[str, float], list[Comparison]]:
    """What the trigger costs a classifier of synthetic images, and one of real ones, the arm
    `control`; nothing where no images were stamped."""
    figures: dict[str, float] = {}
    drops = []
    for name, arm in (("synthetic", "synthetic"), ("real", control)):
        clean, marked = table.values(arm, "accuracy"), table.values(arm, "stamped_accuracy")
        if not marked:
            return {}, []
        drops.append([a - b for a, b in zip(clean, marked, strict=True)])
        figures |= mean_and_std(f"acc_stamped_{name}", marked)
        figures |= mean_and_std(f"acc_drop_{name}", drops[-1])
    harm = [a - b for a, b in zip(*drops, strict=True)]
    figures |= mean_and_std("acc_harm", harm)
    what = "the trigger on test images, beyond what it does to a classifier of real ones"
    return figures, [Comparison(what, "accuracy", [-value for value in harm])]


def balancing_figures(table: Table) -> tuple[dict[str, float], list[Comparison]]:
    """Minority recalls, and what filling up with synthetic images adds to doing nothing and to
    repeating images; nothing where nothing was balanced."""
    figures: dict[str, float] = {}
    comparisons: list[Comparison] = []
    if BALANCING[-1] not in table.arms:
        return figures, comparisons
    for arm in BALANCING:
        if recalls := table.values(arm, "minority_recall"):  # none without such test images
            figures |= mean_and_std(f"minority_recall_{arm}", recalls)
    for arm in BALANCING[:-1]:
        gains = table.differences(BALANCING[-1], arm, "balanced_accuracy")
        figures |= mean_and_std(f"rebalance_gain_{arm}", gains)
        what = f"smaller classes filled up with synthetic images, against {arm} ones"
        comparisons.append(Comparison(what, "balanced_accuracy", gains))
    return figures, comparisons
