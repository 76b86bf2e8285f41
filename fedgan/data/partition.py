"""Who holds which training images: the split of one data set over the clients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedgan import settings
from fedgan.errors import UserError
from fedgan.seeding import numpy_generator

Indices = NDArray[np.int64]
Labels = Tensor | NDArray[Any]

DEALS = 100  # times that `shards` deals anew when a client came short


def partition(labels: Labels, how: settings.Partition, clients: int, seed: int) -> list[Indices]:
    """Sorted indices of each client's images; every image has one owner.

    - iid: shuffled and dealt evenly.
    - dirichlet: each class is divided in proportions drawn from Dirichlet(alpha, ..., alpha); from
      the richest client, images at random then go to whoever has fewer than the minimum.
      Source: T.-M. H. Hsu et al., "Measuring the effects of non-identical data distribution for
      federated visual classification", 2019.
    - shards: each class is cut into shards of its own, all nearly alike in size, and each client is
      dealt `classes_per_client` of them, so that it holds at most that many classes.
      After B. McMahan et al., "Communication-efficient learning of deep networks from decentralized
      data", AISTATS 2017, whose shards may cross from one class into the next.
    - quantity: the minimum for everyone, and the rest by a power law: the client of rank r gets a
      share of r^-alpha. Ranks are drawn at random; labels are mixed evenly.

    Args:
        labels: int64 [N], or multi-label [N, K]; see `primary`.
        how: the config's `partition`.
        clients: number of clients.
        seed: the same seed gives the same partition.

    Raises:
        UserError: where there are more clients than images, or where a client would be left with
            fewer than `how.min_images`.

    Example:
        >>> parts = partition(np.array([0, 0, 1, 1]), settings.Partition(min_images=2), 2, seed=1)
        >>> [len(part) for part in parts]
        [2, 2]
    """
    groups = primary(labels)
    _check(how, clients, len(groups))
    rng = numpy_generator(seed, "partition", how.name)
    deal = {"iid": _iid, "dirichlet": _dirichlet, "shards": _shards, "quantity": _quantity}
    return [np.sort(part) for part in deal[how.name](groups, how, clients, rng)]


def primary(labels: Labels) -> Indices:
    """One label an image [N]. Of a multi-label image it is the rarest of its labels, so that rare
    findings are spread (or skewed) on purpose; images without any label form class K."""
    array = np.asarray(labels)
    if array.ndim == 1:
        return array.astype(np.int64)
    positive = array > 0
    rarity = np.argsort(np.argsort(positive.sum(axis=0), kind="stable"))
    rank = np.where(positive, rarity, array.shape[1])
    none = ~positive.any(axis=1)
    groups: Indices = np.where(none, array.shape[1], rank.argmin(axis=1))
    return groups


def counts(parts: list[Indices], labels: Labels, classes: int) -> NDArray[np.int64]:
    """Images of each class that each client holds [clients, K].

    A multi-label image counts once for each of its labels.
    """
    array = np.asarray(labels)
    if array.ndim == 2:
        return np.stack([(array[part] > 0).sum(axis=0) for part in parts]).astype(np.int64)
    return np.stack([np.bincount(array[part], minlength=classes) for part in parts])


def _check(how: settings.Partition, clients: int, images: int) -> None:
    if clients < 1:
        raise UserError(f"federation.clients: {clients}; allowed: 1 or more")
    if clients > images:
        raise UserError(
            f"federation.clients: {clients} clients for {images} training images; "
            f"allowed: at most {images}"
        )
    if how.min_images < 1:
        raise UserError(f"partition.min_images: {how.min_images}; allowed: 1 or more")
    if clients * how.min_images > images:
        raise UserError(
            f"partition.min_images: {how.min_images} for each of {clients} clients, but there are "
            f"{images} training images; allowed: at most {images // clients}"
        )
    lowest_is_allowed = how.name == "quantity"
    if how.name in ("dirichlet", "quantity") and not (
        math.isfinite(how.alpha) and (how.alpha > 0 or (lowest_is_allowed and how.alpha == 0))
    ):
        allowed = "0 or more" if lowest_is_allowed else "more than 0"
        raise UserError(f"partition.alpha: {how.alpha}; allowed for {how.name}: {allowed}")


def _iid(
    groups: Indices, how: settings.Partition, clients: int, rng: np.random.Generator
) -> list[Indices]:
    return np.array_split(rng.permutation(len(groups)), clients)


def _dirichlet(
    groups: Indices, how: settings.Partition, clients: int, rng: np.random.Generator
) -> list[Indices]:
    owner = np.empty(len(groups), np.int64)
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        shares = rng.dirichlet(np.full(clients, how.alpha))
        owner[members] = np.repeat(np.arange(clients), apportion(len(members), shares))
    sizes = np.bincount(owner, minlength=clients)
    while sizes.min() < how.min_images:
        rich, poor = int(sizes.argmax()), int(sizes.argmin())
        # Neither falls below the minimum by giving, for the richest holds at least the mean.
        count = min(how.min_images - sizes[poor], sizes[rich] - how.min_images)
        owner[rng.choice(np.flatnonzero(owner == rich), count, replace=False)] = poor
        sizes = np.bincount(owner, minlength=clients)
    return [np.flatnonzero(owner == client) for client in range(clients)]


def _shards(
    groups: Indices, how: settings.Partition, clients: int, rng: np.random.Generator
) -> list[Indices]:
    present, sizes = np.unique(groups, return_counts=True)
    each, total = how.classes_per_client, how.classes_per_client * clients
    fewest = math.ceil(len(present) / clients)
    if not fewest <= each <= len(present):
        raise UserError(
            f"partition.classes_per_client: {each} for each of {clients} clients and "
            f"{len(present)} classes; allowed: {fewest} to {len(present)}, so that no class is lost"
        )
    pieces = 1 + apportion(total - len(present), sizes / sizes.sum())
    shards = [
        shard
        for group, count in zip(present, pieces, strict=True)
        for shard in np.array_split(rng.permutation(np.flatnonzero(groups == group)), count)
    ]
    best = 0
    for _ in range(DEALS):
        hands = rng.permutation(total).reshape(clients, each)
        parts = [np.concatenate([shards[shard] for shard in hand]) for hand in hands]
        smallest = min(map(len, parts))
        if smallest >= how.min_images:
            return parts
        best = max(best, smallest)
    raise UserError(
        f"partition.min_images: {how.min_images}, but with {each} label shards each the smallest "
        f"client holds {best}; lower it, or raise partition.classes_per_client"
    )


def _quantity(
    groups: Indices, how: settings.Partition, clients: int, rng: np.random.Generator
) -> list[Indices]:
    shares = np.arange(1, clients + 1) ** -float(how.alpha)
    spare = len(groups) - clients * how.min_images
    sizes = how.min_images + apportion(spare, shares / shares.sum())
    ends = np.cumsum(rng.permutation(sizes))[:-1]
    return np.split(rng.permutation(len(groups)), ends)


def apportion(total: int, shares: NDArray[np.float64]) -> Indices:
    """Whole numbers that sum to `total`, nearest to `total * shares` (largest remainders).

    >>> apportion(10, np.array([0.55, 0.45]))
    array([6, 4])
    """
    exact = total * shares
    whole = np.floor(exact).astype(np.int64)
    short = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:short]] += 1
    return whole
