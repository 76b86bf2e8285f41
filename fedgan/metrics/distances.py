"""Distances between two sets of features that are at hand: Frechet, its limit, kernel; and IS.

The kernel distance and the Inception Score are torchmetrics' own, fed with features that were
encoded once. Whatever changes a figure beside the features is a constant on this page.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from fedgan.metrics._shared import Given, own_randomness
from fedgan.seeding import derive, torch_generator

KERNEL_SUBSETS = 20
"""Random subsets that the kernel distance is averaged over."""
KERNEL_SUBSET_SIZE = 500
"""Images in such a subset; half of the samples where they are fewer than twice as many."""
SCORE_SPLITS = 10
"""Parts that the Inception Score is averaged over."""
INFINITY_SIZES = 8
"""Sizes of subset that the Frechet distance's limit is drawn from."""
INFINITY_SMALLEST = 0.25
"""The smallest of them, as a share of all samples."""


def subset_size(samples: int) -> int:
    """Images in one of the kernel distance's subsets."""
    return min(KERNEL_SUBSET_SIZE, samples // 2)


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of Gaussians fitted to features [n, F] and [m, F], in float64.

    See `streams.frechet.FrechetDistance`, of which this is all in one call.

    >>> a = torch.tensor([[0.0], [2.0]])
    >>> frechet(a, a + 3.0)
    9.0
    """
    from fedgan.metrics.streams.frechet import frechet as of_streams

    return of_streams(a, b)


def kernel(a: Tensor, b: Tensor, seed: int) -> float:
    """Unbiased squared maximum mean discrepancy of features [n, F] and [m, F], mean over subsets.

    The kernel is (x.y / F + 1)^3; the subsets are drawn by `seed`. It may fall below 0. Takes 1.3 s
    of one core at 1000 images and 1280 features, and 1.5 s at 5000; memory is that of both in
    float64, twice.

    Source: Binkowski et al. (ICLR 2018); torchmetrics' `KernelInceptionDistance`, in float64.

    >>> a = torch.ones(8, 1)
    >>> kernel(a, a, seed=0), kernel(a, 2 * a, seed=0)  # 2^3 + 5^3 - 2 * 3^3
    (0.0, 79.0)
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    with _quiet():
        metric = KernelInceptionDistance(
            Given(a.shape[1]),
            subsets=KERNEL_SUBSETS,
            subset_size=subset_size(min(len(a), len(b))),
            sync_on_compute=False,
        )
    metric.update(_float64(a), real=True)
    metric.update(_float64(b), real=False)
    with own_randomness(derive(seed, "fidelity", "kernel")):
        mean, _ = metric.compute()
    return float(mean)


def inception_score(logits: Tensor, seed: int) -> float:
    """exp E KL(p(y|x) || p(y)) of the softmax of logits [n, L], mean over splits drawn by `seed`.
    Takes 0.04 s of one core at 1000 images and 1000 logits; memory is that of these, twice.

    Source: Salimans et al. (NIPS 2016); torchmetrics' `InceptionScore`, in float64.

    >>> inception_score(torch.ones(20, 3), seed=0)
    1.0
    """
    from torchmetrics.image.inception import InceptionScore

    with _quiet():
        metric = InceptionScore(Given(logits.shape[1]), splits=SCORE_SPLITS, sync_on_compute=False)
    metric.update(_float64(logits))
    with own_randomness(derive(seed, "fidelity", "score")), _quiet():
        mean, _ = metric.compute()
    return float(mean)


def infinity_sizes(samples: int) -> list[int]:
    """Sizes of the subsets that the limit is drawn from, ascending, the last one all samples.

    >>> infinity_sizes(1000)
    [250, 357, 464, 571, 679, 786, 893, 1000]
    """
    smallest = max(2.0, INFINITY_SMALLEST * samples)
    step = (samples - smallest) / (INFINITY_SIZES - 1)
    return sorted({round(smallest + i * step) for i in range(INFINITY_SIZES)})


def frechet_of_subset(a: Tensor, b: Tensor, size: int, seed: int) -> float:
    """Frechet distance of `size` of each of features [n, F] and [m, F], drawn by `seed`."""
    generator = torch_generator(seed, "fidelity", "infinity", size)
    some = [x[torch.randperm(len(x), generator=generator)[:size]] for x in (a, b)]
    return frechet(*some)


def extrapolate(sizes: list[int], distances: list[float]) -> float:
    """Where the least-squares line of distances over 1 / size meets 1 / size = 0.

    The Frechet distance of N images is biased upwards by a term that falls as 1 / N, as long as N
    is above the number of features. Chong and Forsyth vary the generated images and keep all real
    ones, of which they have many; here both are as few, so that both vary. Where all sizes are well
    above the number of features, the limit between two halves of the same images is about 0, on
    either side; where the smallest is not, the line bends and its limit is no longer 0 (2.6 for 125
    to 500 real images of brains against as many, in 1280 features).

    Source: Chong and Forsyth, "Effectively Unbiased FID and Inception Score" (CVPR 2020), section
    4.1. Raises `ValueError` for fewer than two sizes.

    >>> round(extrapolate([10, 20, 40], [3.0 + 50.0 / n for n in (10, 20, 40)]), 6)
    3.0
    """
    if len(sizes) < 2:
        raise ValueError(f"a line needs two sizes of subset at least, found {len(sizes)}")
    x, y = (
        1 / torch.tensor(sizes, dtype=torch.float64),
        torch.tensor(distances, dtype=torch.float64),
    )
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(y.mean() - slope * x.mean())


def _float64(features: Tensor) -> Tensor:
    return features.detach().cpu().double()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torchmetrics: that features are held in memory, that one split has no spread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
