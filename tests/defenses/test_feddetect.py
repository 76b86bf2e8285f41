"""FedDetect against the published algorithm written down again, loop by loop."""

from __future__ import annotations

import warnings
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import IsolationForest

from fedgan.defenses.base import ServerMeans
from fedgan.defenses.feddetect import FedDetect, LossName
from fedgan.errors import UserError
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix


def means(round):
    return ServerMeans(round, torch.zeros(1))


def reports_of(losses, round, clients=None, other=0.0):
    clients = range(len(losses)) if clients is None else clients
    return [
        Report(client, round, 10, other, other, other, float(loss))
        for client, loss in zip(clients, losses, strict=True)
    ]


def updates_of(clients, weights=None):
    n = len(clients)
    weights = torch.full((n,), 1 / n, dtype=torch.float64) if weights is None else weights
    return UpdateMatrix(torch.zeros(n, 1), tuple(clients), (0,) * n, weights)


def forest_flags(losses):
    points = [[0.0, abs(float(loss))] for loss in losses]
    forest = IsolationForest(max_samples=len(losses), random_state=999, contamination="auto")
    return [answer == -1 for answer in forest.fit(points).predict(points)]


def published_weights(flag_table):
    """paper.md's account of the authors' code: one row of flags a round."""
    n = len(flag_table[0])
    weight, count, history = [1 / n] * n, [0] * n, []
    for index, flags in enumerate(flag_table):  # rounds counted from 0
        acted = index > 10 and 0 < sum(flags) < n // 2
        if acted:
            for i in range(n):
                if flags[i]:
                    count[i] += 1
                    weight[i] *= 0.9 ** count[i]
            total = sum(weight)
            weight = [w / total for w in weight]
        history.append((list(weight), acted))
    return history


def forest_scores(points):
    forest = IsolationForest(max_samples=len(points), random_state=999, contamination="auto")
    return (-forest.fit(points).score_samples(points)).tolist()


def stub_flags(defense, flags):
    """Makes the forest say what the test wants to hear."""
    flags = np.array(flags)
    defense.detect = lambda losses: (np.zeros(len(losses)), flags)


@pytest.mark.parametrize("n", [4, 5, 10, 20])
def test_flags_are_those_of_the_published_forest(n):
    rng = np.random.default_rng(n)
    for _ in range(4):
        losses = rng.normal(0, 3, n)
        assert FedDetect.published().detect(np.abs(losses))[1].tolist() == forest_flags(losses)


def test_published_configuration_from_losses_to_weights():
    table = np.random.default_rng(0).normal(5, 1, (20, 10))
    table[:, 0] += 5
    flags = [forest_flags(losses) for losses in table]
    defense = FedDetect.published()
    expected = published_weights(flags)
    for index, losses in enumerate(table):
        verdict = defense(updates_of(range(10)), reports_of(losses, index + 1), means(index + 1))
        assert verdict.flagged.tolist() == flags[index]
        assert verdict.weights.tolist() == pytest.approx(expected[index][0], rel=1e-9)
    assert any(acted for _, acted in expected)


@settings(max_examples=60)
@given(n=st.integers(4, 20), rate=st.floats(0, 0.6), seed=st.integers(0, 10**6))
def test_weights_are_those_of_the_published_rule(n, rate, seed):
    table = (np.random.default_rng(seed).random((60, n)) < rate).tolist()
    defense = FedDetect.published()
    for index, (weights, acted) in enumerate(published_weights(table)):
        stub_flags(defense, table[index])
        verdict = defense(updates_of(range(n)), reports_of([1] * n, index + 1), means(index + 1))
        assert verdict.acted == acted
        assert verdict.weights.tolist() == pytest.approx(weights, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    ("form", "expected"), [("compounding", 0.9 ** (1 + 2 + 3)), ("per-flag", 0.9**3)]
)
def test_what_three_flags_leave(form, expected):
    defense = FedDetect(decay_form=form, warm_up=0)
    stub_flags(defense, [True, False, False, False])
    for round in range(2, 5):
        verdict = defense(updates_of(range(4)), reports_of([1] * 4, round), means(round))
    assert (verdict.weights[0] / verdict.weights[1]).item() == pytest.approx(expected)
    assert verdict.weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(("flagged", "acts"), [(0, False), (1, True), (2, False), (3, False)])
def test_acts_below_half_of_the_clients_only(flagged, acts):
    defense = FedDetect(warm_up=0)
    stub_flags(defense, [i < flagged for i in range(5)])
    verdict = defense(updates_of(range(5)), reports_of([1] * 5, 2), means(2))
    assert verdict.acted == acts
    assert verdict.flagged.sum() == flagged
    assert (verdict.weights.unique().numel() == 1) == (not acts)


@pytest.mark.parametrize(("warm_up", "first"), [(0, 2), (3, 5), (10, 12)])
def test_first_round_in_which_it_acts(warm_up, first):
    defense = FedDetect(warm_up=warm_up)
    stub_flags(defense, [True, False, False, False])
    acted = [
        round
        for round in range(1, 15)
        if defense(updates_of(range(4)), reports_of([1] * 4, round), means(round)).acted
    ]
    assert acted == list(range(first, 15))


def test_trust_multiplies_the_weights_of_fedavg():
    defense = FedDetect(warm_up=0, decay=0.5)
    stub_flags(defense, [True, False, False, False])
    fair = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    weights = defense(updates_of(range(4), fair), reports_of([1] * 4, 2), means(2)).weights
    assert weights.tolist() == pytest.approx([0.25, 0.375, 0.25, 0.125])


def test_a_client_is_known_by_its_number_not_its_place():
    defense = FedDetect(warm_up=0, decay=0.5)
    stub_flags(defense, [False, True, False, False])
    defense(updates_of([2, 5, 6, 9]), reports_of([1] * 4, 2, [2, 5, 6, 9]), means(2))
    stub_flags(defense, [False] * 4)
    clients = [5, 6, 7, 9]
    weights = defense(updates_of(clients), reports_of([1] * 4, 3, clients), means(3)).weights
    assert weights.tolist() == pytest.approx([1 / 7, 2 / 7, 2 / 7, 2 / 7])


def test_the_odd_loss_is_found_and_scored_highest():
    scores, flagged = FedDetect().detect(np.array([1.0, 1.1, 0.9, 1.05, 0.95, 9.0]))
    assert flagged[5]
    assert scores.argmax() == 5
    assert ((scores > 0.5) == flagged).all()
    assert ((scores > 0) & (scores <= 1)).all()


@pytest.mark.parametrize("loss", ["g_loss", "g_loss_last", "d_loss", "d_loss_last"])
def test_reads_the_loss_it_is_told_to(loss):
    values = dict.fromkeys(["d_loss", "g_loss", "d_loss_last", "g_loss_last"], 1.0)
    reports = [
        Report(i, 1, 10, **{**values, loss: 50.0 if i == 3 else 1.0 + i / 100}) for i in range(6)
    ]
    assert FedDetect(loss=loss)(updates_of(range(6)), reports, means(1)).scores.argmax() == 3


@pytest.mark.parametrize("loss", ["both", "both_last"])
def test_both_losses_are_the_two_coordinates(loss):
    last = loss.removeprefix("both")
    drawn = np.random.default_rng(8).normal(0, 2, (9, 4)).tolist()
    reports = [Report(i, 1, 10, *own) for i, own in enumerate(drawn)]
    points = [
        [abs(getattr(report, f"d_loss{last}")), abs(getattr(report, f"g_loss{last}"))]
        for report in reports
    ]
    verdict = FedDetect(loss=loss)(updates_of(range(9)), reports, means(1))
    assert verdict.scores.tolist() == forest_scores(points)
    assert verdict.scores.tolist() != forest_scores([point[::-1] for point in points])


@pytest.mark.parametrize("odd", ["d_loss", "g_loss"])
def test_both_sees_who_is_odd_in_either(odd):
    usual = np.random.default_rng(3).normal(2, 0.1, (8, 2))
    usual[5, ["d_loss", "g_loss"].index(odd)] = 9.0
    scores, flagged = FedDetect(loss="both").detect(usual)
    assert scores.argmax() == 5
    assert flagged[5]


@pytest.mark.parametrize("form", ["compounding", "per-flag"])
@pytest.mark.parametrize("loss", get_args(LossName))
def test_losses_alone_suffice(loss, form):
    """`judge`, by names and losses, says what the call says by updates and reports."""
    names = ("d_loss", "g_loss", "d_loss_last", "g_loss_last")
    by_losses, by_reports = (FedDetect(loss, decay_form=form, warm_up=0) for _ in range(2))
    rng, fair = np.random.default_rng(1), torch.tensor([0.4, 0.1, 0.2, 0.2, 0.1]).double()
    acted = []
    for round in range(1, 5):
        table = rng.normal(4, 1, (5, 4))
        table[2] += 9
        own = table[:, [names.index(name) for name in by_losses.reads]]
        found = by_losses.judge(["a", "b", "c", "d", "e"], own, fair, round)
        reports = [Report(i, round, 10, *losses) for i, losses in enumerate(table.tolist())]
        expected = by_reports(updates_of(range(5), fair), reports, means(round))
        assert torch.equal(found.weights, expected.weights)
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.flagged, expected.flagged)
        assert found.acted == expected.acted
        acted.append(found.acted)
    assert any(acted)
    assert set(by_losses.counts) <= {"a", "b", "c", "d", "e"}


def test_a_loss_beyond_float32_is_odd_and_fails_nothing():
    for huge in (1e39, -1e308):
        scores, flagged = FedDetect().detect(np.array([1.0, 1.1, 0.9, 1.05, huge]))
        assert scores.argmax() == 4
        assert flagged[4]


def test_a_restored_memory_goes_on_as_the_old_one():
    table = np.random.default_rng(0).random((40, 6)) < 0.2
    whole, first = FedDetect.published(), FedDetect.published()
    for round, flags in enumerate(table, start=1):
        if round == 21:
            state = first.state_dict()
            first = FedDetect.published()
            first.load_state_dict(state)
        stub_flags(whole, flags)
        stub_flags(first, flags)
        reports = reports_of([1] * 6, round)
        expected = whole(updates_of(range(6)), reports, means(round))
        found = first(updates_of(range(6)), reports, means(round))
        assert torch.equal(found.weights, expected.weights)
    assert whole.counts


def test_hundreds_of_flags_leave_finite_weights():
    defense = FedDetect(decay_form="compounding", warm_up=0)
    stub_flags(defense, [True, False, False, False])
    for round in range(2, 400):
        verdict = defense(updates_of(range(4)), reports_of([1] * 4, round), means(round))
    assert verdict.weights.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])
    alone = defense(updates_of([0]), reports_of([1], 400, [0]), means(400))
    assert alone.weights.tolist() == [1.0]


@pytest.mark.parametrize("n", [1, 2])
def test_too_few_to_be_odd(n):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verdict = FedDetect(warm_up=0)(
            updates_of(range(n)), reports_of([1.0, 9.0][:n], 9), means(9)
        )
    assert not verdict.flagged.any()
    assert verdict.scores.isnan().all()
    assert verdict.weights.sum().item() == pytest.approx(1)


def test_needs_four_clients_in_a_round():
    """Of three, fewer than 3 // 2 = 1 would have to be flagged, so nothing would ever happen."""
    FedDetect().check(4)
    with pytest.raises(UserError, match=r"^defense: feddetect needs n >= 4: n is 3$"):
        FedDetect().check(3)


@pytest.mark.parametrize(
    "init_args",
    [
        *[{"decay": 0.0}, {"decay": 1.01}, {"warm_up": -1}, {"loss": "bath"}],
        *[{"forest_seed": -1}, {"forest_seed": 2**32}],
    ],
)
def test_values_out_of_range(init_args):
    with pytest.raises(ValueError, match=next(iter(init_args))):
        FedDetect(**init_args)
