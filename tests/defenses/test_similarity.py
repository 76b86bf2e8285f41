"""FoolsGold, FLTrust and FLAME against their papers in plain numpy, and against planted clients."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import HDBSCAN

from fedgan.defenses.base import ServerMeans
from fedgan.defenses.chain import Chain, PerNetwork
from fedgan.defenses.similarity import FLAME, FLTrust, FoolsGold, majority
from fedgan.errors import UserError
from fedgan.updates import UpdateMatrix


def rows(n=6, size=60, seed=0, shared=1.0):
    rng = np.random.default_rng(seed)
    lengths = np.exp(0.5 * rng.normal(size=(n, 1)))
    return ((shared * rng.normal(size=size) + rng.normal(size=(n, size))) * lengths).astype("f4")


def matrix(values, clients=None):
    n = len(values)
    clients = tuple(range(n)) if clients is None else tuple(clients)
    weights = torch.full((n,), 1 / n, dtype=torch.float64)
    return UpdateMatrix(torch.from_numpy(values), clients, (0,) * n, weights)


def means(size=60, round=1, seed=0, parameters=None):
    start = torch.zeros(size) if parameters is None else torch.from_numpy(parameters)
    return ServerMeans(round, start, seed)


def cosine(a, b):
    a, b = a.astype("f8"), b.astype("f8")
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


# FoolsGold


def foolsgold(histories, kappa):
    """Algorithm 1, client by client; a negative cosine pardons wholly."""
    n = len(histories)
    alike = np.full((n, n), -1.0)
    for i in range(n):
        for j in range(n):
            if i != j:
                alike[i, j] = cosine(histories[i], histories[j])
    most = [max(0.0, *alike[i]) for i in range(n)]
    for i in range(n):
        for j in range(n):
            if most[j] > most[i]:
                alike[i, j] *= most[i] / most[j]
    rate = [min(1.0, max(0.0, 1 - max(alike[i]))) for i in range(n)]
    rate = [one / max(rate) for one in rate]
    out = []
    for one in rate:
        with np.errstate(divide="ignore"):
            out.append(kappa * (np.log(one) - np.log(1 - one) + 0.5))
    out = np.clip(out, 0, 1)
    return out / out.sum()


@settings(max_examples=60)
@given(
    n=st.integers(2, 9),
    kappa=st.floats(0.2, 3),
    shared=st.floats(-2, 2),
    seed=st.integers(0, 10**6),
)
def test_foolsgold_is_algorithm_1(n, kappa, shared, seed):
    rule, history = FoolsGold(kappa), 0
    for round in range(1, 4):
        values = rows(n, seed=seed + round, shared=shared)
        history = history + values
        verdict = rule(matrix(values), [], means(round=round))
        assert verdict.weights.numpy() == pytest.approx(foolsgold(history, kappa), abs=1e-4)


def test_sybils_lose_all_weight_and_the_others_keep_theirs():
    values = rows(10, 5000, shared=0.0)
    values[6:] = values[6] * np.array([[1], [3], [0.01], [50]])  # of any length
    verdict = FoolsGold()(matrix(values), [], means(5000))
    assert verdict.weights[6:].tolist() == [0] * 4
    assert verdict.weights[:6].numpy() == pytest.approx(np.full(6, 1 / 6), abs=1e-3)
    assert verdict.flagged.tolist() == [False] * 6 + [True] * 4
    assert verdict.scores[6:].tolist() == [1] * 4
    assert verdict.acted


def test_a_benign_client_that_looks_like_a_sybil_is_pardoned():
    values = rows(5, 5000, shared=0.0)
    values[3:] = values[4]
    values[0] = values[0] + 0.8 * values[4] * np.linalg.norm(values[0]) / np.linalg.norm(values[4])
    assert cosine(values[0], values[4]) > 0.5
    verdict = FoolsGold()(matrix(values), [], means(5000))
    assert verdict.flagged.tolist() == [False, False, False, True, True]
    assert 0 < verdict.scores[0] < cosine(values[0], values[4]) ** 2 + 1e-2


def test_sybils_are_found_by_what_they_did_together_over_rounds():
    rule, rng = FoolsGold(), np.random.default_rng(0)
    aim = rng.normal(size=2000)
    for round in range(1, 40):
        values = rng.normal(size=(6, 2000)).astype("f4")
        values[4:] += aim.astype("f4")  # one by one they are half noise
        verdict = rule(matrix(values), [], means(2000, round))
        if round == 1:
            assert not verdict.flagged.any()
    assert verdict.flagged.tolist() == [False] * 4 + [True] * 2


def test_where_all_are_alike_all_weigh_the_same():
    values = np.repeat(rows(1), 5, 0)
    verdict = FoolsGold()(matrix(values), [], means())
    assert verdict.weights.tolist() == [0.2] * 5
    assert verdict.joined(matrix(values)).numpy() == pytest.approx(values[0], rel=1e-6)
    assert FoolsGold()(matrix(values[:1]), [], means()).weights.tolist() == [1]


def test_clients_are_known_by_their_numbers():
    rule, alone = FoolsGold(), FoolsGold()
    first, second = rows(4, seed=1), rows(3, seed=2)
    rule(matrix(first, [1, 4, 6, 9]), [], means())
    found = rule(matrix(second, [4, 5, 9]), [], means(round=2))
    sums = np.stack([first[1] + second[0], second[1], first[3] + second[2]])
    expected = alone(matrix(sums, [4, 5, 9]), [], means())
    assert torch.equal(found.weights, expected.weights)


@pytest.mark.parametrize("k", [7, 60, 65536])
def test_its_memory_is_a_fixed_sample_and_can_be_restored(k):
    whole, first = FoolsGold(coordinates=k), FoolsGold(coordinates=k)
    for round in range(1, 7):
        if round in (1, 4):
            state = first.state_dict()
            first = FoolsGold(coordinates=k)
            first.load_state_dict(state)
        updates = matrix(rows(seed=round))
        server = means(round=round, seed=3)
        assert torch.equal(first(updates, [], server).weights, whole(updates, [], server).weights)
    kept = whole.state_dict()["history"]
    total = sum(rows(seed=round)[2] for round in range(1, 7))
    assert kept.keys() == set(range(6))
    assert kept[2].shape == (min(k, 60),)
    assert set(np.round(kept[2].numpy(), 3)) <= set(np.round(total, 3))
    assert kept[2].untyped_storage().nbytes() == 4 * min(k, 60)  # and not all clients' rows


def test_flagged_is_who_weighs_less_than_a_tenth_of_its_share():
    rule = FoolsGold()
    rule.weigh = lambda alike: torch.tensor([0.019, 0.021, 0.96 / 3, 0.96 / 3, 0.96 / 3]).double()
    assert rule(matrix(rows(5)), [], means()).flagged.tolist() == [True, False, False, False, False]


# FLTrust


def fltrust(values, root):
    values = values.astype("f8")
    length = np.linalg.norm(values[root])
    total, trust = np.zeros(values.shape[1]), []
    for i, row in enumerate(values):
        t = 0 if i == root else max(0, cosine(row, values[root]))
        total += t * length / np.linalg.norm(row) * row
        trust.append(t)
    return total / sum(trust), np.array(trust) / sum(trust)


@settings(max_examples=60)
@given(n=st.integers(2, 9), root=st.integers(0, 8), seed=st.integers(0, 10**6))
def test_fltrust_is_algorithm_2(n, root, seed):
    root, values = root % n, rows(n, seed=seed)
    verdict = FLTrust(root)(matrix(values), [], means())
    aggregate, trust = fltrust(values, root)
    assert verdict.aggregate.numpy() == pytest.approx(aggregate, rel=1e-4, abs=1e-6)
    assert verdict.weights.numpy() == pytest.approx(trust, rel=1e-6)
    expected = [1 - cosine(row, values[root]) for row in values]
    assert verdict.scores.numpy() == pytest.approx(expected, abs=1e-9)


def test_trust_of_planted_clients():
    root = np.array([3.0, 4.0, 0.0])
    others = np.array([[0.0, 0.0, 9.0], [-3.0, -4.0, 0.0], [3e5, 4e5, 0.0], [3.0, 4.0, 5.0]])
    verdict = FLTrust(2)(matrix(np.stack([others[0], others[1], root, *others[2:]])), [], means(3))
    assert verdict.flagged.tolist() == [True, True, False, False, False]
    cos = 0.5**0.5
    assert verdict.weights.tolist() == pytest.approx([0, 0, 0, 1 / (1 + cos), cos / (1 + cos)])
    expected = (root + cos * cos * others[3]) / (1 + cos)  # the long one is its direction
    assert verdict.aggregate.numpy() == pytest.approx(expected, rel=1e-6)


def test_lengths_of_the_others_do_not_matter():
    values = rows()
    longer = values * np.array([[1, 1, 30, 0.01, 5, 1]], "f4").T
    one, other = (FLTrust(1)(matrix(x), [], means()).aggregate for x in (values, longer))
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
    shorter = values * np.array([[1, 0.5, 1, 1, 1, 1]], "f4").T
    half = FLTrust(1)(matrix(shorter), [], means()).aggregate
    assert torch.allclose(one / 2, half, rtol=1e-5, atol=1e-6)


def test_without_its_root_a_round_changes_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        verdict = FLTrust(3)(matrix(rows(3), [0, 1, 5]), [], means(round=7))
    assert caplog.messages == [
        "round 7: fltrust: root 3 has handed in nothing usable; the global model stays as it is"
    ]
    assert torch.equal(verdict.aggregate, torch.zeros(60))
    assert verdict.weights.tolist() == [0, 0, 0]
    assert not verdict.flagged.any()
    assert verdict.acted


def test_where_nobody_follows_the_root_a_round_changes_nothing(caplog):
    values = np.stack([rows(1)[0], -rows(1)[0], -2 * rows(1)[0]])
    with caplog.at_level(logging.WARNING):
        verdict = FLTrust(0)(matrix(values), [], means())
    assert "root 0 is followed by nobody" in caplog.text
    assert not verdict.aggregate.any()
    assert verdict.flagged.tolist() == [False, True, True]


def test_an_impossible_root_is_refused():
    rule = FLTrust(4)
    rule.check_clients(5)
    for defense in (rule, Chain([rule]), PerNetwork([rule, rule], [1, 1])):
        with pytest.raises(UserError, match=r"fltrust: root is 4; .* they are 0 to 3"):
            defense.check_clients(4)


# FLAME


def hdbscan_admits(models):
    n = len(models)
    apart = [[1 - cosine(a, b) for b in models] for a in models]
    apart = np.where(np.abs(apart) < 1e-12, 0, np.array(apart))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = HDBSCAN(
            min_cluster_size=n // 2 + 1,
            min_samples=1,
            allow_single_cluster=True,
            metric="precomputed",
        ).fit((apart + apart.T) / 2)
    assert found.labels_.max() == 0
    return found.labels_ == 0


def flame(values, admitted):
    lengths = np.linalg.norm(values.astype("f8"), axis=1)
    bound = np.median(lengths)
    clipped = values * np.minimum(1, bound / lengths)[:, None]
    return clipped[admitted].mean(0), bound


@settings(max_examples=80)
@given(
    n=st.integers(2, 15),
    compare=st.sampled_from(["models", "updates"]),
    shared=st.floats(0, 3),
    seed=st.integers(0, 10**6),
)
def test_flame_is_hdbscan_clipping_and_noise(n, compare, shared, seed):
    values, parameters = rows(n, seed=seed, shared=shared), rows(1, seed=seed + 1)[0]
    server = means(parameters=parameters)
    admitted = hdbscan_admits(values + parameters if compare == "models" else values)
    aggregate, bound = flame(values, admitted)
    verdict = FLAME(0.0, compare)(matrix(values), [], server)
    assert verdict.flagged.tolist() == (~admitted).tolist()
    assert verdict.aggregate.numpy() == pytest.approx(aggregate, rel=1e-4, abs=1e-6)
    assert (verdict.weights > 0).tolist() == admitted.tolist()
    assert verdict.weights.sum().item() == pytest.approx(1)
    noisy = FLAME(0.5, compare)(matrix(values), [], server).aggregate - verdict.aggregate
    assert 0.2 * bound < noisy.std().item() < 0.8 * bound


@settings(max_examples=80)
@given(n=st.integers(3, 20), dims=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_the_majority_is_hdbscans_whatever_the_ties(n, dims, seed):
    rng = np.random.default_rng(seed)
    points = np.round(2 * rng.normal(size=(n, dims)))
    apart = np.linalg.norm(points[:, None] - points, axis=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = HDBSCAN(
            min_cluster_size=n // 2 + 1,
            min_samples=1,
            allow_single_cluster=True,
            metric="precomputed",
        ).fit(apart.copy())
    assert majority(torch.from_numpy(apart)).tolist() == (found.labels_ == 0).tolist()


def test_a_planted_minority_is_turned_away_and_clipped():
    values = rows(9, 400, shared=3.0)
    values[:3] = -40 * rows(9, 400, seed=5, shared=3.0)[:3]
    for compare in ("models", "updates"):
        verdict = FLAME(compare=compare)(matrix(values), [], means(400))
        assert verdict.flagged[:3].all()
        assert (~verdict.flagged[3:]).sum() >= 5
        assert verdict.scores[:3].min() > verdict.scores[3:].max()


def test_equal_updates_are_all_admitted():
    values = np.repeat(rows(1), 6, 0)
    verdict = FLAME(0.0)(matrix(values), [], means(parameters=rows(1, seed=4)[0]))
    assert not verdict.flagged.any()
    assert verdict.aggregate.numpy() == pytest.approx(values[0], rel=1e-6)


# All of them

RULES = [FoolsGold, lambda: FLTrust(2), FLAME]


@pytest.mark.parametrize("make", RULES)
def test_the_order_of_clients_does_not_matter(make):
    values, order = rows(), [3, 0, 4, 2, 1, 5]
    one = make()(matrix(values), [], means())
    shuffled = UpdateMatrix(
        torch.from_numpy(values[order]), tuple(order), (0,) * 6, matrix(values).weights
    )
    other = make()(shuffled, [], means())
    assert torch.allclose(one.weights[order], other.weights, atol=1e-9)
    assert torch.equal(one.flagged[order], other.flagged)
    assert torch.allclose(one.joined(matrix(values)), other.joined(shuffled), atol=1e-5)


@pytest.mark.parametrize("make", RULES)
@pytest.mark.parametrize("scale", [1e-4, 1e5])
def test_scales_with_the_updates(make, scale):
    values = rows()
    one, other = (
        make()(updates, [], means()).joined(updates)
        for updates in (matrix(values), matrix(scale * values))
    )
    assert other.numpy() == pytest.approx(scale * one.numpy(), rel=1e-4, abs=1e-6 * scale)


@pytest.mark.parametrize("make", RULES)
def test_nothing_is_written_and_the_precision_does_not_matter(make):
    values = rows()
    before = values.copy()
    found = make()(matrix(values), [], means()).joined(matrix(values))
    assert (values == before).all()
    exact = matrix(values.astype("f8"))
    precise = make()(exact, [], means()).joined(exact)
    assert (precise.dtype, found.dtype) == (torch.float64, torch.float32)
    assert torch.allclose(precise.float(), found, atol=1e-5)


def test_the_same_bytes_on_any_number_of_ranks(same_bytes):
    same_bytes(
        lambda: [
            [FoolsGold(coordinates=100)],
            [FLTrust(7)],
            [FLTrust(1)],
            [FLAME()],
            [FLAME(compare="updates")],
        ]
    )


@pytest.mark.parametrize("rule", [FoolsGold(), FLTrust(0)])
def test_needs_two_clients(rule):
    rule.check(2)
    assert rule.fewest() == 2
    with pytest.raises(UserError, match="needs at least 2 in a round"):
        rule.check(1)


@pytest.mark.parametrize(
    ("cls", "init_args"),
    [
        (FoolsGold, {"kappa": 0.0}),
        (FoolsGold, {"coordinates": 0}),
        (FLTrust, {"root": -1}),
        (FLAME, {"noise": -1.0}),
    ],
)
def test_values_out_of_range(cls, init_args):
    with pytest.raises(ValueError, match=rf"init_args\.{next(iter(init_args))} is"):
        cls(**init_args)
