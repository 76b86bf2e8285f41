"""metrics.csv and clients.csv: a row a round, a row a client a round, none twice."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedgan.tracking.records import CLIENTS, METRICS, Records, read_table

COLUMNS = "round client n_images d_loss g_loss d_loss_last g_loss_last weight score flagged"
TRUTH = "suppressed malicious status"


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


def test_a_flag_without_a_deed_suppresses_nobody(info, record):
    play(info, record, [1], acted=False)
    rows = read_table(info.run_dir / CLIENTS)
    assert [row["flagged"] for row in rows] == ["False", "False", "True"]
    assert [row["suppressed"] for row in rows] == ["False"] * 3


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
