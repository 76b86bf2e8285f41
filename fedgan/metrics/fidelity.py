"""How far generated images are from real ones: Frechet and kernel distance, Inception Score."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedgan.metrics import distances
from fedgan.metrics._floors import PAIRS, enough, mean_floor, worst
from fedgan.metrics.base import Encoded, Encoder
from fedgan.metrics.measure import Findings, Generated, Measure, Scene
from fedgan.metrics.real import DRAWN, halves

CLASS_IMAGES = 20
"""Images of a class, at least, real and generated, for its kernel distance: it has no bias at any
number, but below this its floor is as wide as what it is to find."""
CLASS_FEATURES = 2
"""Images of a class, at least, per feature, for its Frechet distance: with as many images as
features the smallest eigenvalue of a covariance is estimated as 0, with twice as many it is 9 % of
the truth (Marchenko and Pastur), and with fewer the distance tells how many there were."""
Job = Callable[[], float]


class Fidelity(Measure):
    """Frechet and kernel distances to real images, pooled and per class, and the Inception Score.

    Of two disjoint halves A and B of n training images each (`real.Halves`), the n generated images
    are held against A; B against A gives the floor, which is what a perfect generator would get at
    this n. Distances fall as n grows, so n is part of the figure. All three have the classes' mix.

    One pair of halves is chance. Over 30 pairs of brain-mri's (n = 400, 96 features, four classes)
    its Frechet distance was 0.044 to 0.565 where they were drawn without regard to class, 0.020 to
    0.094 with the classes' mix, and the mean of ten such pairs 0.037 to 0.057. So a Frechet floor
    is the mean over 5 to 10 pairs of halves of the same 2n images, as many as bring its standard
    error below 3 %. A kernel distance's floor is of the first pair alone: it has no bias to show,
    and of halves with one mix it lies a little below 0.

    Figures, for each encoder, here called x (fid, kid and is stand for fd_x, kd_x and is_x if it is
    `inception`):

    - `fd_x`: squared Frechet distance of Gaussians fitted to the features; `fd_x_floor`;
      `fd_x_ratio` = fd_x / fd_x_floor.
    - `kd_x`: unbiased squared maximum mean discrepancy, mean over subsets; it may fall below 0.
      `kd_x_floor`; no ratio, as the floor is about 0.
    - `is_x`: Inception Score; `is_x_real` is A's. At most the number of classes, and a rough figure
      where labels are not exclusive.
    - `kd_x_worst_class`: the largest kernel distance of generated images of a class to A's of that
      class, over the classes that have 20 images on each side; `kd_x_worst_class_floor`: the
      largest floor, not always of the same class. `fd_x_worst_class`, likewise, if all of these
      classes have two images per feature.
    - `fd_x_infinity`: the limit of fd_x for n to infinity, by a line over 1 / n
      (`distances.extrapolate`); `fd_x_infinity_floor`, the same of B against A, about 0 where the
      line's smallest subset, n / 4 images, is well above the number of features, and far from it
      elsewhere: 2.6 at n = 500 and 1280 features; `fd_x_infinity_excess` = fd_x_infinity -
      fd_x_infinity_floor, which is to be read there. Only for `infinity`.

    Details: `settings`, all that the figures depend on beside the images; `floors`, for each
    encoder, of how many pairs of halves its Frechet floor is the mean, and their distances;
    `per_class`, a table for each encoder; `infinity`, the points of the lines; `notes`, where the
    limit is none.

    Args:
        infinity: take the limit too: eight Frechet distances more, and as many in `prepare`.
        per_class: take the distances of each class too, where the generated images have labels.

    Takes, at n = 1000 and 1280 features, some 3 s of one core, most of it for `fd_x`, and four
    times as much in `prepare`; each distance is a job of its own.

    Source: Heusel et al. (NeurIPS 2017), Binkowski et al. (ICLR 2018), Salimans et al. (NIPS 2016).

    >>> Fidelity(infinity=True).name
    'fidelity'
    """

    name: ClassVar[str] = "fidelity"

    def __init__(self, infinity: bool = False, per_class: bool = True) -> None:
        self.infinity = infinity
        self.per_class = per_class
        self._scene: Scene | None = None
        self._floors: list[dict[str, float]] = []

    def prepare(self, scene: Scene) -> None:
        """The floors."""
        real = members_of_halves(scene)
        jobs: dict[str, Job] = {}
        for encoder in scene.encoders:
            (a, logits), (b, _) = split_halves(scene, encoder)
            jobs |= self._jobs(scene, encoder.name, a, b, real if self.per_class else None)
            jobs[score_name(encoder.name)] = partial(distances.inception_score, logits, scene.seed)
        self._floors = [_run(scene, "distances between real images", jobs)]
        names = [distance_name(encoder.name) for encoder in scene.encoders]
        while len(self._floors) < PAIRS and not enough(self._floors, names):
            jobs = self._other_pair(scene, len(self._floors))
            self._floors.append(_run(scene, "distances between other real images", jobs))
        self._scene = scene

    def _other_pair(self, scene: Scene, pair: int) -> dict[str, Job]:
        """The Frechet distances between two other halves of the same images."""
        n, labels = scene.samples, scene.train.labels.cpu()
        own = labels[halves(labels, n, scene.seed)]
        order = halves(own, n, scene.seed, pair)
        first, second = torch.split(members(own[order], len(scene.classes)), n)
        real = (first, second) if self.per_class else None
        jobs: dict[str, Job] = {}
        for encoder in scene.encoders:
            a, b = torch.split(scene.halves(encoder)[0][order], n)
            jobs |= _frechet_jobs(encoder.name, a, b, real)
        return jobs

    def measure(self, scene: Scene, generated: Generated) -> Findings:
        if self._scene is not scene:
            self.prepare(scene)
        classes = None
        if self.per_class and generated.labels is not None:
            drawn = members(generated.labels.cpu(), len(scene.classes))
            classes = members_of_halves(scene)[0], drawn
        jobs: dict[str, Job] = {}
        for encoder in scene.encoders:
            (a, _), _ = split_halves(scene, encoder)
            features, logits = generated.seen(encoder)
            if len(features) != scene.samples:
                raise ValueError(
                    f"expected features of {scene.samples} images, found {len(features)}"
                )
            jobs |= self._jobs(scene, encoder.name, a, features, classes)
            jobs[score_name(encoder.name)] = partial(distances.inception_score, logits, scene.seed)
        found = _run(scene, "distances", jobs)
        findings = Findings(details={"settings": {**settings(scene), "floor_pairs": PAIRS}})
        for encoder in scene.encoders:
            self._doubt(scene, encoder, findings)
            self._report(scene, encoder.name, found, classes, findings)
        return findings

    def _jobs(
        self,
        scene: Scene,
        encoder: str,
        a: Tensor,
        b: Tensor,
        classes: tuple[Tensor, Tensor] | None,
    ) -> dict[str, Job]:
        """All distances between features [n, F] of two sets, whose classes are given as [n, K]."""
        fd, kd, seed = distance_name(encoder), kernel_name(encoder), scene.seed
        jobs = _frechet_jobs(encoder, a, b, classes)
        jobs[kd] = partial(distances.kernel, a, b, seed)
        if self.infinity:
            for size in distances.infinity_sizes(scene.samples):
                jobs[f"{fd} at {size}"] = partial(distances.frechet_of_subset, a, b, size, seed)
        if classes is None:
            return jobs
        for i in range(len(scene.classes)):
            ours, theirs = a[classes[0][:, i]], b[classes[1][:, i]]
            if min(len(ours), len(theirs)) >= CLASS_IMAGES:
                jobs[f"{kd} of {i}"] = partial(distances.kernel, ours, theirs, seed)
        return jobs

    def _doubt(self, scene: Scene, encoder: Encoder, findings: Findings) -> None:
        """Says so where the line over 1 / n has no limit to find."""
        smallest = distances.infinity_sizes(scene.samples)[0]
        features = split_halves(scene, encoder)[0][0].shape[1]
        if self.infinity and smallest <= features:
            fd = distance_name(encoder.name)
            findings.details.setdefault("notes", []).append(
                f"{fd}_infinity is no limit here: its line begins at {smallest} images, no more "
                f"than the {features} features, where the distance does not fall as 1 / n; read it "
                f"beside {fd}_infinity_floor, or {fd}_infinity_excess, their difference"
            )

    def _report(
        self,
        scene: Scene,
        encoder: str,
        found: dict[str, float],
        classes: tuple[Tensor, Tensor] | None,
        findings: Findings,
    ) -> None:
        fd, kd, score = distance_name(encoder), kernel_name(encoder), score_name(encoder)
        floors, figures = self._floors[0], findings.figures
        drawn = [pair[fd] for pair in self._floors]
        floor = fmean(drawn)
        findings.details.setdefault("floors", {})[encoder] = {"pairs": len(drawn), fd: drawn}
        figures |= {
            fd: found[fd],
            f"{fd}_floor": floor,
            f"{fd}_ratio": found[fd] / floor if floor > 0 else math.inf,
            kd: found[kd],
            f"{kd}_floor": floors[kd],
            score: found[score],
            f"{score}_real": floors[score],
        }
        if self.infinity:
            self._report_limit(scene, encoder, found, findings)
        if classes is not None:
            self._report_classes(scene, encoder, found, classes, findings)

    def _report_limit(
        self, scene: Scene, encoder: str, found: dict[str, float], findings: Findings
    ) -> None:
        """Where the lines over 1 / n meet n = infinity, and their points."""
        fd, figures = distance_name(encoder), findings.figures
        sizes = distances.infinity_sizes(scene.samples)
        own, floors = ([x[f"{fd} at {size}"] for size in sizes] for x in (found, self._floors[0]))
        limit, floor = distances.extrapolate(sizes, own), distances.extrapolate(sizes, floors)
        figures[f"{fd}_infinity"] = limit
        figures[f"{fd}_infinity_floor"] = floor
        figures[f"{fd}_infinity_excess"] = limit - floor
        table = {"samples": sizes, fd: own, f"{fd}_floor": floors}
        findings.details.setdefault("infinity", {})[encoder] = table

    def _report_classes(
        self,
        scene: Scene,
        encoder: str,
        found: dict[str, float],
        classes: tuple[Tensor, Tensor],
        findings: Findings,
    ) -> None:
        """The distances of each class, and the worst of them."""
        fd, kd, floors = distance_name(encoder), kernel_name(encoder), self._floors[0]
        counts = [chosen.sum(0).tolist() for chosen in classes]
        rows = [
            {
                "class": name,
                "real": real,
                "generated": generated,
                "kd": found.get(f"{kd} of {i}"),
                "kd_floor": floors.get(f"{kd} of {i}"),
                "fd": found.get(f"{fd} of {i}"),
                "fd_floor": mean_floor(self._floors, f"{fd} of {i}"),
            }
            for i, (name, real, generated) in enumerate(zip(scene.classes, *counts, strict=True))
        ]
        findings.details.setdefault("per_class", {})[encoder] = rows
        findings.figures.update(worst(rows, kd, "kd", self._floors))
        findings.figures.update(worst(rows, fd, "fd", self._floors))


def settings(scene: Scene) -> dict[str, Any]:
    """All that figures in an encoder's features depend on beside the images, for the report."""
    return {
        "encoders": {
            encoder.name: {"fingerprint": encoder.fingerprint, **encoder.details()}
            for encoder in scene.encoders
        },
        "samples": scene.samples,
        "batch_size": scene.batch_size,
        "device": scene.device.type,
        "halves": DRAWN,
        "halves_seed": scene.seed,
        "images": f"uint8 [{', '.join(map(str, scene.train.images.shape[1:]))}], nearest byte",
        **constants(scene.samples),
    }


def constants(samples: int) -> dict[str, Any]:
    """What the figures of `samples` images depend on beside the images, for summary.json."""
    return {
        "kernel_subsets": distances.KERNEL_SUBSETS,
        "kernel_subset_size": distances.subset_size(samples),
        "score_splits": distances.SCORE_SPLITS,
        "class_images": CLASS_IMAGES,
        "class_images_per_feature": CLASS_FEATURES,
    }


def members(labels: Tensor, classes: int) -> Tensor:
    """Which images are of which class, bool [n, K], of labels int64 [n] or float [n, K].

    >>> members(torch.tensor([1, 0]), 2).tolist()
    [[False, True], [True, False]]
    """
    if labels.ndim == 2:
        return labels > 0.5
    return labels[:, None] == torch.arange(classes)


def members_of_halves(scene: Scene) -> tuple[Tensor, Tensor]:
    """`members` of the images in halves A and B, bool [n, K] each."""
    labels = scene.train.labels.cpu()
    labels = labels[halves(labels, scene.samples, scene.seed)]
    a, b = torch.split(members(labels, len(scene.classes)), scene.samples)
    return a, b


def distance_name(encoder: str) -> str:
    """What the Frechet distance in an encoder's features is called.

    >>> distance_name("inception"), distance_name("domain")
    ('fid', 'fd_domain')
    """
    return "fid" if encoder == "inception" else f"fd_{encoder}"


def kernel_name(encoder: str) -> str:
    """What the kernel distance in an encoder's features is called: kid, or kd_ and its name."""
    return "kid" if encoder == "inception" else f"kd_{encoder}"


def score_name(encoder: str) -> str:
    """What the Inception Score of an encoder's logits is called: is, or is_ and its name."""
    return "is" if encoder == "inception" else f"is_{encoder}"


def encode(encoder: Encoder, images: Tensor, batch_size: int) -> Encoded:
    """Features [N, F] and logits [N, L], float32 on the CPU, of uint8 images [N, C, H, W].

    Images are encoded `batch_size` at a time, without gradients and in full precision whatever
    autocast is in force; no random numbers are drawn.
    """
    with torch.inference_mode(), torch.autocast(images.device.type, enabled=False):
        batches = [encoder(batch) for batch in torch.split(images, batch_size)]
        features, logits = zip(*batches, strict=True)
        return torch.cat(features).float().cpu(), torch.cat(logits).float().cpu()


def split_halves(scene: Scene, encoder: Encoder) -> tuple[Encoded, Encoded]:
    """Features and logits of half A and of half B."""
    features, logits = scene.halves(encoder)
    n = scene.samples
    return (features[:n], logits[:n]), (features[n:], logits[n:])


def _run(scene: Scene, words: str, jobs: dict[str, Job]) -> dict[str, float]:
    """What the jobs came to, by name."""
    scene.progress(words, 0, len(jobs))
    results = scene.share(list(jobs.values()))
    scene.progress(words, len(jobs), len(jobs))
    return dict(zip(jobs, results, strict=True))


def _frechet_jobs(
    encoder: str, a: Tensor, b: Tensor, classes: tuple[Tensor, Tensor] | None
) -> dict[str, Job]:
    """The Frechet distances between features [n, F] of two sets, and of the classes that have
    images enough."""
    fd = distance_name(encoder)
    jobs: dict[str, Job] = {fd: partial(distances.frechet, a, b)}
    for i in range(0 if classes is None else classes[0].shape[1]):
        ours, theirs = a[classes[0][:, i]], b[classes[1][:, i]]  # type: ignore[index]
        if min(len(ours), len(theirs)) >= max(CLASS_IMAGES, CLASS_FEATURES * a.shape[1]):
            jobs[f"{fd} of {i}"] = partial(distances.frechet, ours, theirs)
    return jobs
