"""What loggers chart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedgan.tracking.series import detection_scalars, lines, scalars, thinned, weights_picture


def rows(rounds=3, clients=4):
    return [
        {"round": str(r), "client": str(c), "g_loss": str(r + c / 10), "weight": "0.25"}
        for r in range(1, rounds + 1)
        for c in range(clients)
    ]


def test_one_line_a_client_with_the_gaps_left_out():
    table = rows(3, 2)
    table[2]["g_loss"] = "nan"  # round 2, client 0
    table[5]["g_loss"] = ""  # round 3, client 1
    found = lines(table, "g_loss", frozenset({1}))
    assert found.names == ["client 0", "client 1 (malicious)"]
    assert found.rounds == [[1, 3], [1, 2]]
    assert found.values == [[1.0, 3.0], [1.1, 2.1]]
    assert lines(table, "critic_bias", frozenset()) == ([], [], [])


@pytest.mark.parametrize(("rounds", "most"), [(3, 12), (3, 11), (300, 100), (5, 2)])
def test_thinning_keeps_whole_rounds_and_the_last(rounds, most):
    table = rows(rounds)
    kept = thinned(table, most)
    played = sorted({int(row["round"]) for row in kept})
    assert played[-1] == rounds
    assert len(kept) == 4 * len(played) <= max(most, 4)
    assert len(kept) == len(table) or most < len(table)
    assert len({b - a for a, b in itertools.pairwise(played)}) <= 1
    assert thinned([], most) == []


def test_detection_of_a_round_counts_those_who_were_judged(record):
    found = detection_scalars(record(1).client_rows())
    assert (found["detection/malicious_clients"], found["detection/benign_clients"]) == (1, 1)
    assert (found["detection/malicious_flagged"], found["detection/benign_flagged"]) == (1, 0)
    assert found["detection/malicious_weight"] == 0.25
    assert found["detection/benign_fair_weight"] == 0.7
    idle = detection_scalars(record(1, acted=False).client_rows())
    assert idle["detection/malicious_flagged"] == 1
    assert idle["detection/malicious_suppressed"] == 0


def test_scalars_hold_each_client_and_a_bias_where_there_is_one(record):
    found = scalars(record(2, figures={"fd_x": 3.0}, critic_bias={2: 1.5}))
    assert (found["round"], found["fd_x"], found["g_loss/client 2"]) == (2, 3.0, 3.0)
    assert [key for key in found if key.startswith("critic_bias")] == ["critic_bias/client 2"]


def test_the_attackers_weight_is_the_red_area():
    table = rows(2, 4)
    picture = np.asarray(weights_picture(table, frozenset({3})).convert("RGB")).astype(int)
    red = (picture[..., 0] > 180) & (picture[..., 1] < 90)
    blue = picture[..., 2] > picture[..., 0] + 30
    inside = picture[:, 200:400]
    assert red[:, 200:400].sum() > 0.15 * inside.shape[0] * inside.shape[1]
    assert red[:, 300].nonzero()[0].min() > blue[:, 300].nonzero()[0].max() - 3  # below the others
    assert weights_picture(rows(1, 2), frozenset()).size == picture.shape[1::-1]
