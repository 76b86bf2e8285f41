"""metrics.csv and clients.csv: a row a round, a row a client a round, none twice."""

from __future__ import annotations

import io
import math
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedgan.tracking.base import Observer, Observers
from fedgan.tracking.records import CLIENTS, METRICS, Records, Table, read_table

COLUMNS = "round client n_images d_loss g_loss d_loss_last g_loss_last weight fair_weight score"
TRUTH = "flagged suppressed malicious status"


TABLES = (METRICS, CLIENTS)


def play(info, record, rounds, **kwargs):
    records = Records()
    records.on_start(info)
    for round in rounds:
        records.on_round(record(round, **kwargs))
    records.close()


def test_clients(info, record):
    play(info, record, [1, 2])
    rows = read_table(info.run_dir / CLIENTS)
    assert list(rows[0]) == [*COLUMNS.split(), *TRUTH.split()]
    assert [(row["round"], row["client"]) for row in rows] == [
        (str(round), str(client)) for round in (1, 2) for client in range(3)
    ]
    good, left_out, bad = rows[:3]
    assert [float(good[k]) for k in ("d_loss", "g_loss", "weight", "score")] == [0.5, 1, 0.75, 0.4]
    assert (left_out["status"], float(left_out["weight"])) == ("non-finite loss", 0.0)
    assert math.isnan(float(left_out["score"]))
    assert (bad["flagged"], bad["malicious"], bad["status"]) == ("True", "True", "ok")
    assert [row["suppressed"] for row in rows[:3]] == ["False", "False", "True"]
    assert (float(bad["weight"]), float(bad["score"])) == (0.25, 0.6)
    assert [float(row["fair_weight"]) for row in rows[:3]] == [0.7, 0.0, 0.3]


def test_a_critics_bias_stands_where_it_was_asked_for(info, record):
    records = Records()
    records.on_start(info)
    records.on_round(record(1))
    records.on_round(record(2, critic_bias={2: 1.5}))
    records.on_round(record(3))
    rows = read_table(info.run_dir / CLIENTS)
    assert list(rows[0])[-1] == "critic_bias"
    assert [row["critic_bias"] for row in rows] == [""] * 5 + ["1.5"] + [""] * 3


def test_a_flag_without_a_deed_suppresses_nobody(info, record):
    play(info, record, [1], acted=False)
    rows = read_table(info.run_dir / CLIENTS)
    assert [row["flagged"] for row in rows] == ["False", "False", "True"]
    assert [row["suppressed"] for row in rows] == ["False"] * 3


@pytest.mark.parametrize(
    ("weights", "suppressed"),
    [
        ([0.7, 0.3], False),  # all have what is theirs
        ([0.65, 0.35], False),  # it got more than its fair weight
        ([0.75, 0.25], True),
        ([1.0, 0.0], True),
        ([0.0, 0.0], True),  # nobody is trusted
    ],
)
def test_a_flag_suppresses_only_whom_it_costs_weight(info, record, weights, suppressed):
    made = record(1)
    verdict = replace(made.verdict, weights=torch.tensor(weights, dtype=torch.float64))
    made = replace(made, verdict=verdict)
    assert [row["suppressed"] for row in made.client_rows()] == [False, False, suppressed]


def test_metrics(info, record):
    play(info, record, [1, 2], figures={"fd_domain": 3.5})
    one, two = read_table(info.run_dir / METRICS)
    assert (one["round"], two["round"]) == ("1", "2")
    assert float(one["g_loss"]) == pytest.approx((1.0 + 3.0) / 2)  # without the one left out
    assert float(one["d_loss"]) == pytest.approx((0.5 + 0.9) / 2)
    assert (one["flagged"], one["acted"], one["left_out"]) == ("1", "1", "1")
    assert (one["seconds"], one["images_per_second"], one["fd_domain"]) == ("1.25", "48.0", "3.5")


def test_a_figure_that_comes_later_gets_its_column(info, record):
    records = Records()
    records.on_start(info)
    records.on_round(record(1))
    records.on_round(record(2, figures={"fd_domain": 3.5}))
    one, two = read_table(info.run_dir / METRICS)
    assert (one["fd_domain"], two["fd_domain"]) == ("", "3.5")
    assert list(one) == list(two)
    assert list(one)[:3] == ["round", "acted", "d_loss"]  # the round, then by name
    assert list(one)[1:] == sorted(list(one)[1:])


@pytest.mark.parametrize("first", [1, 2, 4])
def test_rounds_that_are_played_again_replace_the_old_ones(info, record, first):
    play(info, record, [1, 2, 3], figures={"fd_domain": 1.0})
    play(replace(info, first_round=first), record, range(first, 5), figures={"fd_domain": 2.0})
    metrics = read_table(info.run_dir / METRICS)
    assert [row["round"] for row in metrics] == ["1", "2", "3", "4"]
    assert [row["fd_domain"] for row in metrics] == ["1.0"] * (first - 1) + ["2.0"] * (5 - first)
    clients = read_table(info.run_dir / CLIENTS)
    assert [row["round"] for row in clients] == [
        str(round) for round in (1, 2, 3, 4) for _ in "abc"
    ]


@pytest.mark.parametrize("torn", ["3,", "3,4", "3,4,5"])
def test_a_line_torn_by_a_crash_is_left_out(tmp_path, torn):
    path = tmp_path / "table.csv"
    path.write_text(f"a,b,c\r\n0,1,2\r\n{torn}", newline="")
    assert read_table(path) == [{"a": "0", "b": "1", "c": "2"}]
    path.write_text("a,b,")
    assert read_table(path) == []


def test_rounds_after_a_torn_line_are_whole(info, record):
    play(info, record, [1, 2])
    path = info.run_dir / CLIENTS
    path.write_bytes(path.read_bytes()[:-10])
    play(replace(info, first_round=2), record, [2])
    rows = read_table(path)
    assert [(row["round"], row["client"]) for row in rows] == [
        (round, client) for round in "12" for client in "012"
    ]
    assert all(None not in row and None not in row.values() for row in rows)


def test_no_file_no_rows(tmp_path):
    assert read_table(tmp_path / "none.csv") == []


ROUNDS = 4
names = st.sampled_from(["fd_domain", "a figure", "presence", "fd_gehör", "zz"])
looks = st.lists(
    st.dictionaries(names, st.floats(0, 9), max_size=3), min_size=ROUNDS, max_size=ROUNDS
)
biases = st.lists(
    st.sampled_from([{}, {0: 0.5}, {0: -1.0, 2: 2.0}]), min_size=ROUNDS, max_size=ROUNDS
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(looks, biases, st.data())
def test_cut_anywhere_and_resumed_is_the_unbroken_table(info, record, figures, bias, data):
    """Killed after any round, the file cut anywhere, gone on with from any round that both tables
    still hold whole: after the last round the bytes are those of a run that was never stopped."""

    def go(folder, first, last):
        here = replace(info, run_dir=Path(folder), first_round=first)
        records = Records()
        records.on_start(here)
        for round in range(first, last + 1):
            asked = {"figures": figures[round - 1], "critic_bias": bias[round - 1]}
            records.on_round(record(round, **asked))
        return [Path(folder, name) for name in TABLES]

    with tempfile.TemporaryDirectory() as unbroken, tempfile.TemporaryDirectory() as stopped:
        expected = [path.read_bytes() for path in go(unbroken, 1, ROUNDS)]
        tables = go(stopped, 1, data.draw(st.integers(1, ROUNDS), "killed after"))
        torn = data.draw(st.sampled_from(tables), "torn")
        content = torn.read_bytes()
        torn.write_bytes(content[: data.draw(st.integers(0, len(content)), "bytes left")])
        metrics, clients = map(read_table, tables)
        whole = min(len(metrics), len(clients) // 3)
        first = data.draw(st.integers(1, whole + 1), "resumed from")
        assert [path.read_bytes() for path in go(stopped, first, ROUNDS)] == expected


def test_a_figure_that_no_kept_row_has_takes_its_column_along(info, record):
    play(info, record, [1, 2, 3])
    play(replace(info, first_round=3), record, [3], figures={"old": 1.0})
    play(replace(info, first_round=3), record, [3], figures={"new": 1.0})
    (*_, last) = read_table(info.run_dir / METRICS)
    assert "old" not in last
    assert last["new"] == "1.0"


def test_rows_are_appended_and_the_file_is_replaced_for_new_columns_only(tmp_path):
    table, inodes = Table(tmp_path / "t.csv"), []
    for row in ({"a": 1}, {"a": 2}, {"a": 3, "b": 1}, {"a": 4}, {"b": 2}):
        table.append([row])
        inodes.append(table.path.stat().st_ino)
    first, new = {inodes[0], inodes[1]}, {inodes[2], inodes[3], inodes[4]}
    assert len(first) == len(new) == 1
    assert table.path.read_bytes() == b"a,b\r\n1,\r\n2,\r\n3,1\r\n4,\r\n,2\r\n"


def test_a_kill_while_the_file_is_replaced_leaves_the_old_one(tmp_path, monkeypatch):
    table = Table(tmp_path / "t.csv")
    table.append([{"a": 1}])
    before = table.path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        table.append([{"a": 2, "b": 1}])
    assert table.path.read_bytes() == before


@pytest.mark.parametrize("most", [3, 10**6])
def test_rows_are_one_write_unless_the_disk_takes_less(tmp_path, monkeypatch, most):
    sizes = []

    class Disk(io.FileIO):
        def write(self, data):
            sizes.append(len(data))
            return super().write(data[:most])

    table = Table(tmp_path / "t.csv")
    table.append([{"a": 10, "b": 1}])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, *_, **__: Disk(path, "ab"))
        table.append([{"a": 20, "b": 2}, {"a": 30, "b": 3}])
    assert [row["a"] for row in read_table(table.path)] == ["10", "20", "30"]
    assert sizes == ([12] if most > 12 else [12, 9, 6, 3])


def test_sync_brings_both_tables_to_the_disk(info, record, monkeypatch):
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}"))
    )
    records = Records()
    everybody = Observers([Observer(), records])
    everybody.on_start(info)
    everybody.sync()  # nothing is there yet
    everybody.on_round(record(1))
    synced.clear()
    everybody.sync()
    assert {str(info.run_dir / name) for name in TABLES} <= set(synced)
    assert str(info.run_dir) in synced
