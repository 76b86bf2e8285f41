"""Detection quality: hand-counted tables, AUROC against its definition, every rule's scores."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.components import available
from fedgan.defenses.api import make_defense
from fedgan.defenses.base import Defense, ServerMeans
from fedgan.metrics.detection import Detection, detection
from fedgan.metrics.measure import Labelled, Scene
from fedgan.reports import Report
from fedgan.settings import Component
from fedgan.tracking.console import LABELS
from fedgan.updates import UpdateMatrix


def row(round=1, client=0, **more):
    usual = {"flagged": False, "suppressed": False, "malicious": False, "status": "ok"}
    usual |= {"score": math.nan, "weight": 0.5, "fair_weight": 0.5}
    return {"round": round, "client": client, **usual, **more}


def as_read(rows):
    """As a CSV file gives them back."""
    return [{key: str(value) for key, value in one.items()} for one in rows]


def scene(history):
    split = Labelled(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2).long())
    return Scene(
        *(split,) * 3,
        classes=("a",),
        multi_label=False,
        seed=1,
        samples=1,
        batch_size=1,
        device=torch.device("cpu"),
        encoders=(),
        trigger=None,
        share=lambda jobs: [job() for job in jobs],
        progress=lambda *_: None,
        history=history,
        halves=lambda _: None,
        encode=lambda *_: None,
        encode_real=lambda *_: None,
    )


def test_client_rounds_are_counted():
    bad, good = {"malicious": True}, {"malicious": False, "client": 1}
    flag, deed = {"flagged": True}, {"flagged": True, "suppressed": True}
    rows = [row(**bad, **deed)] * 2 + [row(**bad, **flag), row(**bad)]
    rows += [row(**good, **deed), row(**good, **flag)] + [row(**good)] * 6
    rows += [row(**bad, **flag, status="timed out"), row(status="timed out")]  # nobody judged them
    found = detection(as_read(rows))
    wanted = {
        "malicious_client_rounds": 4,
        "malicious_flagged": 3,
        "malicious_suppressed": 2,
        "true_positive_rate": 0.75,
        "benign_client_rounds": 8,
        "benign_flagged": 2,
        "benign_suppressed": 1,
        "false_positive_rate": 0.25,
    }
    assert wanted.items() <= found.items()
    # Wilson's interval of 3 of 4 and 2 of 8, from the literature's closed form by hand
    assert found["true_positive_interval"] == pytest.approx([0.3006, 0.9544], abs=1e-4)
    assert found["false_positive_interval"] == pytest.approx([0.0715, 0.5907], abs=1e-4)
    assert found == detection(rows)  # values as well as their words


@pytest.mark.parametrize("malicious", [True, False])
def test_null_where_there_is_nothing_to_count(malicious):
    found = detection([row(malicious=malicious, score=1.0)])
    assert (found["true_positive_rate"] is None) == (not malicious)
    assert (found["false_positive_rate"] is None) == malicious
    assert found["auroc"] is found["auroc_by_round"] is None
    assert ("nobody attacked" in found["words"]) == (not malicious)


@pytest.mark.parametrize("rows", [[], [row(status="failed: boom")]])
def test_nobody_judged(rows):
    found = detection(rows, by_round=True)
    assert found["words"] == "nobody was judged"
    assert found["benign_worst"] is found["benign_weight_lost"] is None
    assert found["attackers"] == found["rounds"] == []


scores = st.sampled_from([-math.inf, -2.0, 0.0, 0.5, 1.0, 40.0, 41.0, 1e6, math.inf, math.nan])


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans(), scores), max_size=14))
def test_auroc_is_the_chance_that_the_malicious_scores_higher(turns):
    rows = [row(r, i, malicious=bad, score=s) for i, (r, bad, s) in enumerate(turns)]

    def by_definition(some):
        some = [(bad, s) for _, bad, s in some if not math.isnan(s)]
        pairs = itertools.product([s for b, s in some if b], [s for b, s in some if not b])
        wins = [1.0 if one > two else 0.5 if one == two else 0.0 for one, two in pairs]
        return float(np.mean(wins)) if wins else None

    found = detection(rows, by_round=True)
    assert found["auroc"] == pytest.approx(by_definition(turns))
    each = {r: by_definition([turn for turn in turns if turn[0] == r]) for r, _, _ in turns}
    assert {one["round"]: one["auroc"] for one in found["rounds"]} == pytest.approx(each)
    known = [area for area in each.values() if area is not None]
    assert found["auroc_by_round"] == (pytest.approx(np.mean(known)) if known else None)
    assert found["auroc_rounds"] == len(known)
    assert found["unscored"] == sum(math.isnan(s) for _, _, s in turns)


def test_scores_that_drift_are_told_apart_by_round_only():
    """Distances shrink with the updates: round 1's benign clients are above round 2's attacker."""
    rows = [row(r, 0, malicious=True, score=10.0 / r**3) for r in (1, 2)]
    rows += [row(r, c, score=9.0 / r**3) for r in (1, 2) for c in (1, 2)]
    found = detection(rows)
    assert found["auroc_by_round"] == 1.0
    assert found["auroc"] == 0.75


def test_no_scores_in_words():
    found = detection([row(malicious=True), row(client=1)])
    assert found["auroc"] is None
    assert found["words"] == "the rule gives no scores that could be compared"
    assert found["unscored"] == 2


@pytest.mark.parametrize(
    ("kept", "first", "from_round", "before"),
    [
        ([1.0, 1.0, 1.0], None, None, None),
        ([0.0, 0.0, 0.0], 3, 3, 0),
        ([1.0, 0.5, 0.05], 5, 5, 2),
        ([1.0, 0.05, 0.5], 4, None, None),  # it came back
        ([0.05, 0.5, 0.0999], 3, 5, 2),
        ([0.5, 0.1, 0.0], 5, 5, 2),  # a tenth is not below a tenth
    ],
)
def test_rounds_until_an_attacker_is_silenced(kept, first, from_round, before):
    rows = [
        row(r, 7, malicious=True, weight=w * 0.2, fair_weight=0.2)
        for r, w in zip((3, 4, 5), kept, strict=True)
    ]
    rows += [row(r, 7, weight=0.2, fair_weight=0.2) for r in (1, 2, 6)]  # at rest it does no harm
    rows += [row(4, 7, malicious=True, weight=0.0, fair_weight=0.0, status="timed out")]
    whole = detection(rows)
    assert whole["rounds_until_silenced"] == (3 if before is None else before)
    assert whole["rounds_until_first_silenced"] == (3 if first is None else first - 3)
    (found,) = whole["attackers"]
    assert found["client"] == 7
    assert (found["attacked_from_round"], found["rounds_attacked"]) == (3, 3)
    assert found["silenced_first_round"] == first
    assert found["silenced_from_round"] == from_round
    assert found["attacked_before_silenced"] == before


def test_an_attacker_at_rest_is_neither_malicious_nor_benign():
    """A flag after its shot is no false alarm; one before it is."""
    rows = [row(r, 7, malicious=r == 2, flagged=True, score=5.0, weight=0.1) for r in (1, 2, 3, 4)]
    rows += [row(r, 1, score=1.0) for r in (1, 2, 3, 4)]
    found = detection(rows, by_round=True)
    assert found["malicious_client_rounds"] == 1
    assert found["benign_client_rounds"] == 5
    assert found["benign_flagged"] == 1
    assert found["resting_client_rounds"] == 2
    assert [one["benign_client_rounds"] for one in found["rounds"]] == [2, 1, 1, 1]


def test_weight_lost():
    """Client 1 loses half, then all; client 2 gains what is lost; the attacker keeps a quarter."""
    rows = [
        row(1, 0, malicious=True, weight=0.05, fair_weight=0.2),
        row(1, 1, weight=0.2, fair_weight=0.4),
        row(1, 2, weight=0.75, fair_weight=0.4),
        row(2, 1, weight=0.0, fair_weight=0.5),
        row(2, 2, weight=1.0, fair_weight=0.5),
        row(2, 3, weight=0.0, fair_weight=0.0, status="failed: boom"),  # not there: loses nothing
    ]
    found = detection(rows)
    assert found["benign_weight_lost"] == pytest.approx((0.5 + 0 + 1 + 0) / 4)
    assert found["benign_worst"] == pytest.approx(
        {"client": 1, "weight_lost": 0.75, "last_weight_lost": 1.0}
    )
    assert found["malicious_weight_lost"] == pytest.approx(0.75)


weights = st.lists(st.floats(1e-3, 1), min_size=2, max_size=5)


@given(weights, st.data())
def test_what_a_rule_takes_is_between_nothing_and_all(fair, data):
    given_ = data.draw(st.lists(st.floats(0, 1), min_size=len(fair), max_size=len(fair)))
    rows = [
        row(1, i, weight=w, fair_weight=f)
        for i, (w, f) in enumerate(zip(given_, fair, strict=True))
    ]
    found = detection(rows)
    worst = found["benign_worst"]["weight_lost"]
    assert 0 <= found["benign_weight_lost"] <= worst <= 1
    same = detection([one | {"weight": one["fair_weight"]} for one in rows])
    assert same["benign_weight_lost"] == same["benign_worst"]["weight_lost"] == 0


def test_a_table_of_before_there_were_fair_weights():
    old = row(malicious=True, flagged=True, score=1.0)
    del old["fair_weight"]
    found = detection(as_read([old]))
    assert found["true_positive_rate"] == 1.0
    assert found["malicious_weight_lost"] is None


def test_the_measure():
    rows = [row(1, 0, malicious=True, flagged=True, score=2.0, weight=0.0)]
    rows += [row(1, 1, score=1.0, weight=1.0), row(2, 1, flagged=True, weight=0.25)]
    found = Detection().measure(scene(lambda: as_read(rows)), None)
    assert found.figures == pytest.approx(
        {
            "detection_auroc": 1.0,
            "detection_auroc_by_round": 1.0,
            "detection_tpr": 1.0,
            "detection_tpr_low": found.details["true_positive_interval"][0],
            "detection_tpr_high": 1.0,
            "detection_fpr": 0.5,
            "detection_fpr_low": found.details["false_positive_interval"][0],
            "detection_fpr_high": found.details["false_positive_interval"][1],
            "detection_benign_weight_lost": 0.25,
            "detection_benign_weight_lost_worst": 0.25,
            "detection_malicious_weight_lost": 1.0,
            "detection_silenced": 1.0,
            "detection_rounds_until_silenced": 0.0,
            "detection_rounds_until_first_silenced": 0.0,
        }
    )
    assert [one["round"] for one in found.details["rounds"]] == [1, 2]
    shown = {name for name in found.figures if not name.endswith(("_low", "_high"))}
    assert shown <= set(LABELS)  # whoever watches reads words


def test_the_measure_of_a_run_without_an_attack():
    found = Detection().measure(scene(lambda: as_read([row(flagged=True, weight=0.1)])), None)
    assert set(found.figures) == {
        *("detection_fpr", "detection_fpr_low", "detection_fpr_high"),
        *("detection_benign_weight_lost", "detection_benign_weight_lost_worst"),
    }
    assert found.details["auroc"] is None


def test_the_measure_reads_the_table_in_the_first_job_only():
    """On any other rank there is no table."""

    def missing():
        raise AssertionError

    here = scene(missing)
    found = Detection().measure(
        Scene(**{**vars(here), "share": lambda jobs: [detection([], by_round=True) for _ in jobs]}),
        None,
    )
    assert found.figures == {}


def test_the_measure_without_a_run():
    assert Detection().measure(scene(None), None).figures == {}


PARAMETERS = {"fltrust": {"root": 0}}
NO_SCORES = {"fedavg", "mean", "rlr"}
ALIKE = {"foolsgold"}
"""Suspects those that are alike, not those that are far off."""


@pytest.mark.parametrize("name", sorted(available("fedgan.defenses", Defense)))
def test_every_rules_score_is_higher_for_the_suspect(name):
    """What AUROC takes for granted: an attacker far off (for FoolsGold two that are alike) scores
    above everybody else, or the rule has no scores at all."""
    n, bad = 8, [3, 5] if name in ALIKE else [3]
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, 200)) + (0 if name in ALIKE else 2)
    rows[bad] = rng.normal(size=200) + 4 if name in ALIKE else -25.0
    reports = [Report(i, 1, 10, *[1.0 + 0.01 * i + 5 * (i in bad)] * 4) for i in range(n)]
    updates = UpdateMatrix.of(torch.from_numpy(rows.astype(np.float32)))
    rule = make_defense([Component(name, init_args=PARAMETERS.get(name, {}))])
    scores = rule(updates, reports, ServerMeans(1, torch.zeros(200))).scores.tolist()
    if name in NO_SCORES:
        assert all(map(math.isnan, scores))
        return
    others = [score for i, score in enumerate(scores) if i not in bad]
    assert min(scores[i] for i in bad) > max(others)
