"""Scores and p-values of the audit's witnesses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.defenses._spreads import ALONE, AVERAGED, TOGETHER
from fedgan.defenses._suspicion import (
    SHARE_OF_LOSSES,
    USUAL_SCORE,
    Calm,
    Standing,
    agreed,
    bounds,
    either,
    p_values,
    scores,
    together,
    view_scores,
)


def test_p_values_are_those_of_the_highest_of_several_normals():
    from scipy.stats import norm

    found = p_values(torch.tensor([0.0, 2.0, 4.0], dtype=torch.float64), 6)
    np.testing.assert_allclose(found, np.minimum(1, 6 * norm.sf([0.0, 2.0, 4.0])))


def test_scores_do_not_depend_on_units_or_order():
    strengths, spreads = torch.rand((7, 12), dtype=torch.float64) + 0.5, torch.full((12,), 0.2)
    expected = scores(strengths, spreads)
    torch.testing.assert_close(scores(strengths * torch.arange(1.0, 13.0), spreads), expected)
    order = torch.randperm(7)
    torch.testing.assert_close(scores(strengths[order], spreads), expected[order])


def test_a_score_worked_out_by_hand():
    """Of five, the shortest interval that holds three has 0, 0.1 and 0.3; their mean is 0.4 / 3,
    and half of their width over the normal distribution's quartile is the spread."""
    logs = torch.tensor([0.0, 0.1, 0.3, 0.8, -2.0], dtype=torch.float64)
    known = 0.3 / (2 * 0.6745) * np.sqrt(1 + 1 / 3)
    found = scores(logs.exp()[:, None], torch.tensor([0.01]))
    np.testing.assert_allclose(found, (logs - 0.4 / 3) / known, atol=1e-12)
    least = scores(logs.exp()[:, None], torch.tensor([0.5]))  # never less than honest clients'
    np.testing.assert_allclose(least, (logs - 0.4 / 3) / (0.5 * np.sqrt(4 / 3)), atol=1e-12)
    other = torch.stack([logs.exp(), torch.ones(5, dtype=torch.float64)], 1)
    torch.testing.assert_close(  # the highest of its witnesses speaks
        scores(other, torch.tensor([0.01, 0.1])), found.clamp(min=0), atol=1e-12, rtol=0
    )
    # Of those believed alone: two of three, 0 and 0.1.
    some = scores(logs.exp()[:, None], torch.tensor([0.01]), [0, 1, 3])
    np.testing.assert_allclose(some, (logs - 0.05) / (0.1 / 1.349 * np.sqrt(1.5)), atol=1e-12)


@pytest.mark.parametrize(("n", "bad"), [(4, 1), (5, 2), (9, 4), (20, 9)])
def test_a_minority_that_agrees_can_neither_be_the_half_nor_stretch_it(n, bad):
    honest = 0.1 * torch.randn(n - bad, 1, generator=torch.manual_seed(n), dtype=torch.float64)
    for away in (3.0, 300.0):
        colluders = torch.full((bad, 1), away, dtype=torch.float64)
        found = scores(torch.cat([colluders, honest]).exp(), torch.tensor([0.2]))
        assert (found[:bad] > 8).all()
        assert found[bad:].abs().max() < 3


def test_bounds_hold_weight_times_norm_to_five_times_the_usual():
    norms = torch.tensor([[1.0, 2.0], [5.0, 9.0], [1.0, 40.0], [30.0, 2.0]], dtype=torch.float64)
    found = bounds(norms, torch.tensor([1.0, 2.0], dtype=torch.float64))
    np.testing.assert_allclose(found, [1, 1, 1 / 4, 1 / 6])


@pytest.mark.parametrize("rounds", [1, 2, 16])
def test_losses_told_more_often_are_no_further_from_the_others(rounds):
    rng, found = torch.Generator().manual_seed(rounds), []
    for _ in range(1000):
        one = Standing({})
        for _ in range(rounds):
            one.add({}, torch.randn(2, generator=rng, dtype=torch.float64), 0.9)
        found.append(one.losses_by_chance(0.9))
    assert torch.stack(found).square().mean().item() == pytest.approx(1, abs=0.1)


def test_losses_and_networks_together_make_no_more_false_alarms():
    """Of ten witnesses and two losses that tell nothing, at a rate of one in ten."""
    rng = np.random.default_rng(1)
    networks = torch.tensor(rng.normal(size=(40_000, 10)).max(1))
    losses = torch.tensor(rng.normal(size=(40_000, 2)).max(1))
    both = p_values(agreed(networks, losses), 20)
    for share in (0.1, 0.5):
        p = either(p_values(networks, 10), both, share)
        assert 0.04 < (p < 0.1).double().mean() < 0.1
    assert (both < 0.1).double().mean() < 0.1  # where they have all of it


def test_silent_losses_cost_the_networks_a_tenth_of_their_alarms():
    silent, share = torch.ones(3), SHARE_OF_LOSSES
    p = either(torch.tensor([0.0089, 0.0091, 1.0]), silent, share)
    assert (p < 0.01).tolist() == [True, False, False]
    assert p[2] == 1


@settings(deadline=None)
@given(st.lists(st.floats(-3, 10), min_size=3, max_size=12), st.data())
def test_whoever_looks_more_suspect_only_takes_from_what_scores_are_raised_by(own, data):
    more = [data.draw(st.floats(0, 100)) for _ in own]

    def raised(scores):
        calm = Calm()
        calm.add(torch.tensor(scores, dtype=torch.float64), 0.9)
        return calm.raises_by

    before, after = raised(own), raised([a + b for a, b in zip(own, more, strict=True)])
    assert 0 <= after <= before


def test_calm_is_an_average_over_rounds_that_forgets():
    calm = Calm()
    assert calm.raises_by == 0
    for quartile in (1.9, 0.4):
        calm.add(torch.tensor([0.1, quartile, 0.2, 7.0]), 0.5)
    np.testing.assert_allclose(calm.raises_by, USUAL_SCORE - (0.5 * 1.9 + 0.4) / 1.5, rtol=1e-6)
    calm.add(torch.tensor([9.0, 9.0, 9.0]), 0.5)
    assert calm.raises_by == 0


def test_what_wavers_about_an_alarm_neither_adds_to_the_count_nor_takes_off():
    client = Standing({})
    counts = []
    for round, p in enumerate(
        [0.001, 0.099, 0.009, 0.011, 0.001, 0.05, 0.11, 0.02, 1.0, 0.1, 0.5], 1
    ):
        client.judge(3.0, p, 0.01, round)
        counts.append((client.alarms, client.since))
    assert [alarms for alarms, _ in counts] == [1, 1, 2, 2, 3, 3, 2, 2, 1, 0, 0]
    assert [since for _, since in counts] == [1] * 9 + [0] * 2


def test_whoever_is_quiet_comes_back_by_any_alarm_rate():
    client = Standing({})
    for round in range(1, 7):
        client.judge(3.0, 0.2, 0.3, round)
    assert client.is_excluded
    client.judge(1.0, 0.9, 0.3, 7)
    assert client.is_excluded
    for round in range(8, 13):
        client.judge(0.0, 1.0, 0.3, round)
    assert client.trust == 1


def test_a_little_in_every_view_of_both_networks_is_more_than_in_one():
    rng = torch.Generator().manual_seed(2)
    told = {
        view: (0.05 * torch.randn((8, 10, 2), generator=rng, dtype=torch.float64)).exp()
        for view in (*ALONE, *AVERAGED)
    }
    everywhere, once = ({view: own.clone() for view, own in told.items()} for _ in range(2))
    once["critic"][0, 2, 1] *= 2
    for own in everywhere.values():
        own[0, 2, 1] *= 2

    def score(told, view):
        return float(view_scores(view, told[view], torch.full((8,), 9), range(8))[0])

    both, one = together(everywhere), together(once)
    expected = np.exp(np.mean([np.log(own.numpy()) for own in everywhere.values()], 0))
    np.testing.assert_allclose(both[TOGETHER], expected)
    assert score(both, TOGETHER) > 1.3 * max(score(everywhere, view) for view in everywhere)
    assert score(one, TOGETHER) < 0.5 * score(once, "critic")
    assert together({view: told[view] for view in (ALONE[0], AVERAGED[0])}) == {}
