"""UpdateMatrix against plain numpy on 1, 2 and 3 processes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedgan import shards
from fedgan.updates import UpdateMatrix

OWNERS = {  # uneven rows, and a rank with none
    1: (0, 0, 0, 0, 0),
    2: (1, 0, 1, 1, 1),
    3: (2, 0, 2, 0, 2),
}
CLIENTS = (0, 2, 3, 7, 9)
WEIGHTS = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
MIX = np.array(  # clipping, mixing, and a row that another row is
    [[1, 0, 0, 0, 0], [0, 0.5, 0, 0, 0], [0.2] * 5, [0, 0, 0.5, 0.5, 0], [1, 0, 0, 0, 0]],
    dtype=np.float64,
)


def rows(size=23, seed=0):
    return np.random.default_rng(seed).normal(size=(5, size)).astype(np.float32)


def matrix(rank, world, values):
    owners = OWNERS[world]
    mine = [i for i, owner in enumerate(owners) if owner == rank]
    return UpdateMatrix(torch.from_numpy(values[mine]), CLIENTS, owners, torch.from_numpy(WEIGHTS))


def all_answers(cluster, values, origin=None):
    """Everything a rule can ask, asked on every rank; what rank 0 and the last rank heard."""
    updates = matrix(cluster.rank, cluster.world, values)
    mixed = updates.mixed(torch.from_numpy(MIX))
    origin = torch.from_numpy(values.mean(0) * 0.5)
    some = torch.arange(0, values.shape[1], 7)
    mine = {
        "mean": updates.weighted_mean(updates.weights),
        "median": updates.columns(lambda block: block.median(0).values),
        "sum": updates.columns(lambda block: block.sum(0)),
        "gram": updates.gram(),
        "about": updates.gram_about(origin),
        "centred": updates.gram_centred(),
        "norms": updates.norms(),
        "norms about": updates.norms(origin),
        "distances": updates.distances(),
        "inner": updates.inner(origin, 2 * origin),
        "take": updates.take(some),
        "part": updates.part(1, 2).gram(),
        "mixed mean": mixed.weighted_mean(mixed.weights),
        "mixed median": mixed.columns(lambda block: block.median(0).values),
        "mixed gram": mixed.gram(),
        "mixed about": mixed.gram_about(origin),
        "mixed centred": mixed.gram_centred(),
        "mixed norms about": mixed.norms(origin),
        "mixed distances": mixed.distances(),
        "mixed inner": mixed.inner(origin),
        "mixed take": mixed.take(some),
        "twice mixed": mixed.mixed(torch.from_numpy(MIX[::-1].copy())).norms(),
    }
    return cluster.all_gather_objects({key: value.numpy() for key, value in mine.items()})


def pairwise_norms(values):
    return np.linalg.norm(values[:, None] - values[None], axis=2)


def from_the_middle(values):
    """Rows less the one that half of all are nearest to."""
    return values - values[np.median(pairwise_norms(values), axis=1).argmin()]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("block", [50, 2**21])
def test_every_answer_is_numpys_on_every_rank(on_ranks, world, block, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", block)
    monkeypatch.setattr(shards, "PIECE", block)
    values = rows(200)
    exact = values.astype(np.float64)
    mixed = MIX @ exact
    origin = (values.mean(0) * 0.5).astype(np.float64)
    expected = {
        "mean": WEIGHTS @ exact,
        "median": np.median(values, axis=0),
        "sum": values.sum(0),
        "gram": exact @ exact.T,
        "about": (exact - origin) @ (exact - origin).T,
        "centred": from_the_middle(exact) @ from_the_middle(exact).T,
        "norms": np.linalg.norm(exact, axis=1),
        "norms about": np.linalg.norm(exact - origin, axis=1),
        "distances": pairwise_norms(exact),
        "inner": exact @ np.stack([origin, 2 * origin], 1),
        "take": values[:, ::7],
        "part": exact[:, 1:2] @ exact[:, 1:2].T,
        "mixed mean": WEIGHTS @ mixed,
        "mixed median": np.median(mixed, axis=0),
        "mixed gram": mixed @ mixed.T,
        "mixed about": (mixed - origin) @ (mixed - origin).T,
        "mixed centred": from_the_middle(mixed) @ from_the_middle(mixed).T,
        "mixed norms about": np.linalg.norm(mixed - origin, axis=1),
        "mixed distances": pairwise_norms(mixed),
        "mixed inner": mixed @ origin[:, None],
        "mixed take": mixed[:, ::7],
        "twice mixed": np.linalg.norm(MIX[::-1] @ mixed, axis=1),
    }
    for answers in on_ranks(world, all_answers, values):
        assert answers.keys() == expected.keys()
        for key, value in expected.items():
            assert answers[key] == pytest.approx(value, rel=1e-6, abs=1e-6), key


@pytest.mark.parametrize("size", [2, 23, 1000])
def test_the_same_bytes_on_any_number_of_ranks(on_ranks, size, monkeypatch):
    monkeypatch.setattr(shards, "BLOCK", 100)
    monkeypatch.setattr(shards, "PIECE", 100)
    values = rows(size)
    alone = on_ranks(1, all_answers, values)[0]
    for world in (2, 3):
        for answers in on_ranks(world, all_answers, values):
            for key in answers:
                assert answers[key].tobytes() == alone[key].tobytes(), (world, key)


@pytest.mark.parametrize("far", [0.0, 1e3, 1e6])
def test_distances_from_a_combination(far):
    """From `gram_centred`, where the rows differ by 1e-4 of their size and one is far off."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=4096) + 1e-4 * rng.normal(size=(5, 4096))
    values[2] += far
    shares = np.array([0.3, 0.3, 1e-9, 0.2, 0.2 - 1e-9])
    expected = np.linalg.norm(values - shares @ values, axis=1)
    gram = UpdateMatrix.of(torch.from_numpy(values)).gram_centred().numpy()
    apart = np.eye(5) - shares
    assert np.sqrt(np.diag(apart @ gram @ apart.T)) == pytest.approx(expected, rel=1e-6)


def distances_on(cluster, values):
    return matrix(cluster.rank, cluster.world, values).distances().numpy()


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("far", [0.0, 1e3, 1e6, 1e12, 1e18])
def test_distances_of_clients_that_differ_little(on_ranks, world, far):
    """All differ by 1e-4 of their size; one of them may be as far off as it likes."""
    rng = np.random.default_rng(1)
    shared = rng.normal(size=4096)
    values = (shared + 1e-4 * rng.normal(size=(5, 4096))).astype(np.float32)
    values[2] += np.float32(far)
    expected = pairwise_norms(values.astype(np.float64))
    off = ~np.eye(5, dtype=bool)
    found = on_ranks(world, distances_on, values)
    assert found[off] == pytest.approx(expected[off], rel=1e-6)


@pytest.mark.parametrize("world", [1, 2])
def test_colluders_far_from_all_others_keep_their_distances(on_ranks, world):
    values = rows(100, seed=3)
    values[3:] += 1e6
    values[4] = values[3]
    values[4, 0] += 0.125
    expected = pairwise_norms(values.astype(np.float64))
    assert expected[3, 4] == 0.125
    assert on_ranks(world, distances_on, values) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("same", [[0, 1], [1, 2, 4], [0, 1, 2, 3, 4]])
def test_equal_updates_are_at_no_distance(on_ranks, same):
    values = rows(1000, seed=4) * 1e3 + 7
    values[same] = values[same[0]]
    found = on_ranks(2, distances_on, values)
    assert (found[np.ix_(same, same)] == 0).all()
    assert (found > 0).sum() == 25 - len(same) ** 2 - (5 - len(same))


def test_nothing_is_written_into_the_updates():
    values = torch.from_numpy(rows(300))
    before = values.clone()
    updates = UpdateMatrix.of(values)
    for thing in (updates, updates.mixed(torch.from_numpy(MIX))):
        thing.distances(), thing.gram(), thing.weighted_mean(thing.weights)
        thing.columns(lambda block: block.mean(0)), thing.take(torch.tensor([1]))
    assert torch.equal(values, before)


def test_a_weight_of_zero_leaves_a_client_out(on_ranks):
    def mean(cluster, values):
        return matrix(cluster.rank, cluster.world, values).weighted_mean(
            torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
        )

    values = rows()
    assert on_ranks(2, mean, values).numpy() == pytest.approx((values[1] + values[3]) / 2, abs=1e-6)


def test_inner_products_of_updates_far_shorter_than_the_others():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(8, 20000))
    values[3] *= 1e-8
    values[5] = -1e-9 * values[2]
    gram = UpdateMatrix.of(torch.from_numpy(values)).gram().numpy()
    norms = np.linalg.norm(values, axis=1)
    found = gram / np.outer(norms, norms)
    expected = (values @ values.T) / np.outer(norms, norms)
    assert found == pytest.approx(expected, abs=1e-12)
