"""The published algorithm, written down again from paper.md in plain Python on scikit-learn's
forest, and the options that change it.
"""

from __future__ import annotations

import csv
import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import IsolationForest

import fedgan
from fedgan.defenses.feddetect import FedDetect
from fedgan.detect import make_rule, read_table, replay, write_table


def published(table):
    """paper.md's row FedDetect: a row of G losses a round, rounds counted from 0, full
    participation. A list of (scores, flags, acted, weights)."""
    n = len(table[0])
    weight, count, answers = [1 / n] * n, [0] * n, []
    for round, losses in enumerate(table):
        features = [[0.0, abs(loss)] for loss in losses]
        forest = IsolationForest(max_samples=n, random_state=999, contamination="auto")
        forest.fit(features)
        flags = [answer == -1 for answer in forest.predict(features)]
        scores = [-score for score in forest.score_samples(features)]
        acted = False
        if round > 10 and sum(flags) < n // 2:
            for i in range(n):
                if flags[i]:
                    count[i] += 1
                    weight[i] *= 0.9 ** count[i]
                    acted = True
            total = sum(weight)
            weight = [w / total for w in weight]
        answers.append((scores, flags, acted, list(weight)))
    return answers


@pytest.fixture(scope="module")
def expected(drawn):
    """What the published algorithm says of `drawn(n, odd)`, worked out once."""
    return functools.cache(lambda n, odd: published(drawn(n, odd)))


SLOW = [(5, True, 0), (5, False, 1), (10, True, 0), (20, True, 1), (20, False, 0), (3, True, 0)]


@pytest.mark.parametrize(
    ("n", "odd", "first"),
    [
        *[(4, True, 0), (4, True, 1), (7, False, 1), (10, True, 0)],
        *[pytest.param(*case, marks=pytest.mark.slow) for case in SLOW],
    ],
)
def test_the_published_algorithm(write, rows_of, drawn, run, expected, tmp_path, n, odd, first):
    path = write(tmp_path / "losses.csv", rows_of(drawn(n, odd), first))
    answers = expected(n, odd)
    rows = run(path)
    assert list(rows) == [(r, str(i)) for r in range(first, first + 40) for i in range(n)]
    for round, (scores, flags, acted, weights) in enumerate(answers, start=first):
        own = [rows[round, str(i)] for i in range(n)]
        assert [float(row["score"]) for row in own] == pytest.approx(scores, abs=1e-12)
        assert [row["flagged"] for row in own] == [str(flag).lower() for flag in flags]
        assert {row["acted"] for row in own} == {str(acted).lower()}
        assert [float(row["weight"]) for row in own] == pytest.approx(weights, abs=1e-12)
    assert any(acted for _, _, acted, _ in answers) == (n > 3)


def test_in_a_process_of_its_own(write, rows_of, drawn, found, expected, fedgan_command, tmp_path):
    names = ["Basel", "Bern", "Genève", "Zürich"]
    table = drawn(4, True)[:14]
    write(tmp_path / "losses.csv", rows_of(table, 1, names))
    done = fedgan_command("detect", "losses.csv", "--out", "out.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = found(tmp_path / "out.csv")
    for round, (scores, _, _, weights) in enumerate(expected(4, True)[:14], start=1):
        own = [rows[round, name] for name in names]
        assert [float(row["score"]) for row in own] == pytest.approx(scores, abs=1e-12)
        assert [float(row["weight"]) for row in own] == pytest.approx(weights, abs=1e-12)
    again = fedgan_command("detect", "losses.csv", cwd=tmp_path)
    assert done.stdout == f"{again.stdout}table     out.csv\n"


def test_order_is_nothing_to_the_forest_itself(write, rows_of, drawn, run, tmp_path):
    rows = rows_of(drawn(6, True)[:3])
    run(write(tmp_path / "losses.csv", rows))
    before = (tmp_path / "out.csv").read_bytes()
    run(write(tmp_path / "losses.csv", rows[::-1]))
    assert (tmp_path / "out.csv").read_bytes() == before


@settings(max_examples=60)
@given(
    cells=st.dictionaries(
        st.tuples(st.integers(0, 20), st.sampled_from(["a", "b", "c", "10", "9"])),
        st.tuples(
            st.one_of(st.floats(), st.sampled_from([1.0, 2.0, 3.0, 9.0])), st.integers(1, 900)
        ),
        min_size=1,
    ),
    options=st.fixed_dictionaries(
        {"warm_up": st.integers(0, 9), "decay_form": st.sampled_from(["per-flag", "compounding"])}
    ),
)
def test_any_table(write, found, stub, tmp_path_factory, cells, options):
    """Clients come and go, losses are anything: weights of the sound are FedAvg's times trust."""
    folder = tmp_path_factory.mktemp("table")
    rows = [(*key, *value) for key, value in cells.items()]
    path = write(folder / "in.csv", rows, ("round", "client", "g_loss", "n_images"))
    rule = FedDetect(**options)
    with pytest.MonkeyPatch.context() as patch:
        stub(patch)
        findings = replay(rule, read_table(path, rule))
    write_table(findings, folder / "out.csv")
    written = found(folder / "out.csv")
    assert set(written) == set(cells)
    zero = 0 if any(round == 0 for round, _ in cells) else 1
    counts, trust = {}, {}
    for round in sorted({round for round, _ in cells}):
        own = {name: cells[round, name] for r, name in cells if r == round}
        sound = {name: cell for name, cell in own.items() if math.isfinite(cell[0])}
        odd = {name for name, cell in sound.items() if abs(cell[0]) > 5 and len(sound) > 2}
        acts = round - zero > rule.warm_up and 0 < len(odd) < len(sound) // 2
        for name in odd if acts else ():
            counts[name] = counts.get(name, 0) + 1
            before = trust.get(name, 1.0) if rule.decay_form == "compounding" else 1.0
            trust[name] = before * 0.9 ** counts[name]
        total = sum(cell[1] * trust.get(name, 1.0) for name, cell in sound.items())
        for name, (_, images) in own.items():
            row = written[round, name]
            share = images * trust.get(name, 1.0) / total if name in sound else 0.0
            assert float(row["weight"]) == pytest.approx(share, abs=1e-12)
            assert row["flagged"] == str(name in odd).lower()
            assert row["acted"] == str(acts).lower()
            assert (row["score"] == "") == (name not in sound or len(sound) < 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], {}),
        (["--defense.loss=d_loss"], {"loss": "d_loss"}),
        (["--defense.init_args.warm_up=3", "--defense.name=feddetect"], {"warm_up": 3}),
        (
            ["--defense.decay_form=per-flag", "--defense.decay=1e-1", "--defense.forest_seed=5"],
            {"decay_form": "per-flag", "decay": 0.1, "forest_seed": 5},
        ),
    ],
)
def test_options_change_the_published_configuration(options, expected):
    keys = ("loss", "decay", "decay_form", "warm_up", "forest_seed")
    rule, published = make_rule(options), FedDetect.published()
    for key in keys:
        assert getattr(rule, key) == expected.get(key, getattr(published, key))


@pytest.mark.parametrize(
    ("loss", "odd"),
    [("g_loss", 0), ("g_loss_last", 0), ("d_loss", 1), ("d_loss_last", 1), ("both", 2)],
)
def test_the_column_that_an_option_names(write, run, tmp_path, loss, odd):
    usual = np.random.default_rng(0).normal(2, 0.1, (7, 2))
    usual[0, 0], usual[1, 1], usual[2] = 8.0, 9.0, 20.0
    wanted = {"g": [0], "d": [1], "b": [1, 0]}[loss[0]]
    if len(wanted) == 1:
        usual[2] = 2.0
    rows = [(0, i, g, d) for i, (g, d) in enumerate(usual.tolist())]
    columns = ("round", "client", "g_loss", "d_loss")
    written = run(write(tmp_path / "losses.csv", rows, columns), f"--defense.loss={loss}")
    scores = [float(row["score"]) for row in written.values()]
    assert np.argmax(scores) == odd
    points = np.abs(usual[:, wanted])
    points = points if len(wanted) == 2 else np.hstack([0 * points, points])
    forest = IsolationForest(max_samples=7, random_state=999, contamination="auto").fit(points)
    assert scores == pytest.approx((-forest.score_samples(points)).tolist(), abs=1e-12)


def test_the_table_of_a_run_gives_the_verdict_of_the_run(run, tiny, tmp_path):
    changes = {
        "run_dir": str(tmp_path / "run"),
        "federation.clients": 5,
        "federation.rounds": 4,
        "partition.name": "quantity",
        "checkpoint.every": 0,
        "defense.name": "feddetect",
        "defense.init_args": {"loss": "both", "warm_up": 0},
    }
    fedgan.run(tiny(changes))
    options = ["--defense.loss=both", "--defense.warm_up=0", "--defense.decay_form=per-flag"]
    rows = run(tmp_path / "run" / "clients.csv", *options)
    with (tmp_path / "run" / "clients.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            judged = rows[int(row["round"]), row["client"]]
            assert float(judged["weight"]) == pytest.approx(float(row["weight"]), abs=1e-12)
            assert float(judged["score"]) == pytest.approx(float(row["score"]), abs=1e-12)
            assert judged["flagged"] == row["flagged"].lower()
