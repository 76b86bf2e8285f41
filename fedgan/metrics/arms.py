"""The training sets that the utility of generated images is judged by, arm by arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgan.errors import UserError
from fedgan.metrics._strata import stratified
from fedgan.metrics.measure import Generated, Labelled, Scene
from fedgan.seeding import derive


@dataclass(frozen=True)
class Arm:
    """One classifier to train.

    Attributes:
        name: of the arm, the same for all seeds: real_1, synthetic, both_1, unbalanced, ...
        share: of the real training images; None where it has none, or thinned ones.
        repeat: which of the repetitions it is, from 0.
        seed: of initial weights, batches and shifts; the same for every arm of a repetition, so
            that differences between arms are paired.
        chosen: which real training images it has, int64 [n], some perhaps more than once.
        synthetic: the generated images it has beside, or None.
        apart: whether half of each batch is real and half synthetic; else both are mixed as they
            are.
    """

    name: str
    share: float | None
    repeat: int
    seed: int
    chosen: Tensor
    synthetic: Labelled | None = None
    apart: bool = False

    @property
    def n_real(self) -> int:
        """Different real images."""
        return len(self.chosen.unique())

    @property
    def n_synthetic(self) -> int:
        return 0 if self.synthetic is None else len(self.synthetic.labels)

    def parts(self, train: Labelled) -> list[Labelled]:
        """What `fit` takes; copies, so to be made when they are needed."""
        parts = [] if self.synthetic is None else [self.synthetic]
        if len(self.chosen):
            images, labels = (held[self.chosen.to(held.device)] for held in train)
            parts.insert(0, Labelled(images, labels))
        if self.apart or len(parts) < 2:
            return parts
        images, labels = (
            torch.cat([real, drawn.to(real.device)]) for real, drawn in zip(*parts, strict=True)
        )
        return [Labelled(images, labels)]


def percent(share: float) -> str:
    """The share as it stands in a figure's name.

    >>> percent(0.01), percent(0.005), percent(1.0)
    ('1', '0.5', '100')
    """
    return f"{100 * share:.6g}"


def synthetic_images(
    scene: Scene, generated: Generated, synthetic: int | None
) -> tuple[Labelled | None, str]:
    """The synthetic images of the arms, and words where they are not what was asked for.

    They are drawn once, with the whole training split's labels (or a stratified part, or
    repetitions, of them). Where somebody else's images have too few of a class for that, those at
    hand are taken, with their own labels; None where they have no labels such as the real ones.
    """
    train = scene.train
    count = len(train.labels) if synthetic is None else synthetic
    order, _ = stratified(train.labels, derive(scene.seed, "utility", "synthetic labels"))
    labels = train.labels.cpu()[order.repeat(-(-count // len(order)))[:count]]
    try:
        return Labelled(generated.draw(labels, "utility"), labels), ""
    except UserError as error:
        own = generated.labels
        if own is None or own.shape[1:] != labels.shape[1:] or len(own) == 0:
            return None, f"no classifier was trained: {error}"
        return Labelled(generated.images.cpu(), own.cpu().to(labels.dtype)), (
            f"{error}; so the {len(own)} labelled images at hand, in their own mix of labels, were "
            f"taken for the synthetic arms in place of {count}"
        )


def augmentation_arms(
    scene: Scene, drawn: Labelled, shares: Sequence[float], repeats: int
) -> list[Arm]:
    """Real images alone, synthetic ones alone, and both: of every share, in every repetition.

    A repetition draws its own nested subsets of the real images.
    """
    train = scene.train
    none = torch.empty(0, dtype=torch.int64)
    arms = []
    for repeat in range(repeats):
        seed = derive(scene.seed, "utility", repeat)
        order, least = stratified(train.labels, seed)
        arms.append(Arm("synthetic", None, repeat, seed, none, drawn))
        for share in shares:
            chosen, name = order[: max(least, round(share * len(order)))], percent(share)
            arms.append(Arm(f"real_{name}", share, repeat, seed, chosen))
            arms.append(Arm(f"both_{name}", share, repeat, seed, chosen, drawn, apart=True))
    return arms


@dataclass(frozen=True)
class Imbalance:
    """Training images by class, before they are balanced.

    Attributes:
        minority: the smallest class, the first of equals.
        kept: images of each class that are left, int64 [K].
        missing: images that each class lacks to the largest, int64 [K].
    """

    minority: int
    kept: Tensor
    missing: Tensor

    @classmethod
    def of(cls, labels: Tensor, classes: int, ratio: float | None) -> Imbalance:
        """Of labels int64 [N], the smallest class thinned to a `ratio`-th of the largest."""
        kept = labels.cpu().bincount(minlength=classes)
        minority = int(kept.argmin())
        if ratio is not None:
            target = max(1, round(int(kept.max()) / ratio))
            kept[minority] = min(int(kept[minority]), target)
        return cls(minority, kept, kept.max() - kept)


def rebalance_arms(
    scene: Scene, generated: Generated, imbalance: Imbalance, repeats: int
) -> list[Arm]:
    """The imbalanced real images as they are, smaller classes repeated, and filled up by synthesis,
    in every repetition; each of the latter two has as many images of every class.

    Raises `UserError` where somebody else's images have too few of a class.
    """
    labels, most = scene.train.labels.cpu(), int(imbalance.kept.max())
    classes = torch.arange(len(imbalance.kept))
    wanted = classes.repeat_interleave(imbalance.missing)
    drawn = Labelled(generated.draw(wanted, "utility rebalancing"), wanted)
    arms = []
    for repeat in range(repeats):
        seed = derive(scene.seed, "utility", repeat)
        order, _ = stratified(labels, seed)
        each = [order[labels[order] == k][: int(imbalance.kept[k])] for k in classes.tolist()]
        # whole copies of a class one after another: no image comes more than once above another
        repeated = torch.cat([own.repeat(-(-most // len(own)))[:most] for own in each])
        chosen = torch.cat(each)
        arms.append(Arm("unbalanced", None, repeat, seed, chosen))
        arms.append(Arm("oversampled", None, repeat, seed, repeated))
        arms.append(Arm("rebalanced", None, repeat, seed, chosen, drawn))
    return arms
