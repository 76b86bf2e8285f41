"""Every image has one owner, every client its minimum, and the seed decides the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.data.partition import apportion, counts, partition, primary
from fedgan.errors import UserError
from fedgan.settings import Partition

KINDS = ("iid", "dirichlet", "shards", "quantity")


def labels_of(n: int, classes: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, n)


@settings(max_examples=150)
@given(
    kind=st.sampled_from(KINDS),
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=200),
    clients=st.integers(1, 12),
    alpha=st.sampled_from([1e-6, 0.05, 0.5, 5.0]),
    least=st.integers(1, 20),
    seed=st.integers(0, 3),
)
def test_nothing_is_lost_or_doubled(kind, labels, clients, alpha, least, seed):
    how = Partition(name=kind, alpha=alpha, classes_per_client=2, min_images=least)
    labels = np.array(labels)
    if clients * least > len(labels):
        with pytest.raises(UserError, match=r"federation\.clients|partition\.min_images"):
            partition(labels, how, clients, seed)
        return
    try:
        parts = partition(labels, how, clients, seed)
    except UserError:
        if kind != "shards":  # the one kind whose pieces cannot be moved about
            raise
        return
    assert len(parts) == clients
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for part in parts:
        assert len(part) >= least
        assert np.array_equal(part, np.sort(part))
    if kind == "shards":
        assert all(len(np.unique(labels[part])) <= 2 for part in parts)
    again = partition(torch.from_numpy(labels), how, clients, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_is_another_partition(kind):
    labels, how = labels_of(200), Partition(name=kind, min_images=1)
    one, other = (partition(labels, how, 4, seed) for seed in (1, 2))
    assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_iid_is_even_and_dirichlet_skews_as_alpha_falls():
    labels = labels_of(4000)

    def skew(how: Partition) -> float:
        table = counts(partition(labels, how, 8, 1), labels, 4)
        shares = table / table.sum(axis=1, keepdims=True)
        return float(shares.max(axis=1).mean())

    sizes = [len(part) for part in partition(labels, Partition("iid"), 7, 1)]
    assert max(sizes) - min(sizes) <= 1
    even, mild, hard = (skew(Partition("dirichlet", alpha)) for alpha in (1000.0, 1.0, 0.05))
    assert even < 0.32 < mild < hard
    assert hard > 0.7


def test_quantity_follows_the_power_law():
    sizes = sorted(map(len, partition(labels_of(6016), Partition("quantity", 1.0), 4, 1)))
    expected = 16 + (6016 - 64) / np.array([4, 3, 2, 1]) / (1 + 1 / 2 + 1 / 3 + 1 / 4)
    assert np.abs(np.array(sizes) - expected).max() <= 1
    even = partition(labels_of(400), Partition("quantity", 0.0), 4, 1)
    assert [len(part) for part in even] == [100] * 4


def test_counts_sum_to_the_data_set():
    labels = labels_of(300)
    table = counts(partition(labels, Partition("dirichlet"), 5, 1), labels, 6)
    assert table.shape == (5, 6)
    assert np.array_equal(table.sum(axis=0), np.bincount(labels, minlength=6))


def test_multi_label_images_count_by_their_rarest_label():
    findings = np.array(
        [[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 1, 1], [1, 1, 0]], np.float32
    )
    assert primary(findings).tolist() == [1, 0, 2, 3, 2, 1]
    table = counts([np.array([0, 1]), np.array([2, 3, 4, 5])], torch.from_numpy(findings), 3)
    assert table.tolist() == [[2, 1, 0], [3, 2, 2]]
    parts = partition(torch.from_numpy(findings), Partition("dirichlet", min_images=1), 3, 1)
    assert sorted(np.concatenate(parts)) == list(range(6))


def test_apportion_is_exact():
    assert apportion(7, np.full(3, 1 / 3)).sum() == 7
    assert apportion(100, np.array([0.505, 0.495])).tolist() in ([51, 49], [50, 50])


@pytest.mark.parametrize(
    ("how", "clients", "images", "line"),
    [
        (Partition(), 30, 20, r"federation\.clients: 30 clients for 20 .* at most 20$"),
        (Partition(), 0, 20, r"federation\.clients: 0; allowed: 1 or more"),
        (Partition(), 4, 50, r"partition\.min_images: 16 for each of 4 .* at most 12$"),
        (Partition(min_images=0), 4, 50, r"partition\.min_images: 0; allowed: 1 or more"),
        (Partition("dirichlet", 0.0), 4, 100, r"partition\.alpha: 0\.0; .* more than 0"),
        (Partition("dirichlet", float("nan")), 4, 100, r"partition\.alpha: nan"),
        (Partition("quantity", -1.0), 4, 100, r"partition\.alpha: -1\.0; .* 0 or more"),
        (
            Partition("shards", classes_per_client=1),
            3,
            200,
            r"partition\.classes_per_client: 1 .* 2 to 4",
        ),
        (Partition("shards", classes_per_client=5), 3, 200, r"partition\.classes_per_client: 5"),
        (
            Partition("shards", min_images=50),
            4,
            200,
            r"partition\.min_images: 50, but .* holds \d+",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(how, clients, images, line):
    with pytest.raises(UserError, match=line) as caught:
        partition(labels_of(images), how, clients, 1)
    assert "\n" not in str(caught.value)
