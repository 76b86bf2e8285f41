"""What the command makes of tables as people have them, and what it prints and writes."""

from __future__ import annotations

import csv
import io
import random

import pytest

from fedgan.cli import main
from fedgan.defenses.feddetect import FedDetect
from fedgan.detect import read_table, replay, write_table


def test_order_of_rows_and_columns_is_nothing_to_it(write, rows_of, drawn, run, quick, tmp_path):
    rows = [(*row, 10 + row[1], "x") for row in rows_of(drawn(6, True))]
    columns = ("round", "client", "g_loss", "n_images", "status")
    run(write(tmp_path / "losses.csv", rows, columns))
    before = (tmp_path / "out.csv").read_bytes()
    random.Random(1).shuffle(rows)
    order = [3, 4, 2, 1, 0]
    mixed = [[row[i] for i in order] for row in rows]
    run(write(tmp_path / "losses.csv", mixed, [columns[i] for i in order]))
    assert (tmp_path / "out.csv").read_bytes() == before


def test_one_who_has_no_loss_is_left_out_and_told(write, run, quick, tmp_path, capsys):
    rows = [(r, name, 1.0) for r in range(1, 4) for name in ("a", "b", "c", "d")]
    for place, value in ((5, "nan"), (6, ""), (7, "-inf"), (11, "1e999")):
        rows[place] = (*rows[place][:2], value)
    written = run(write(tmp_path / "losses.csv", rows))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    start = f"fedgan: {tmp_path / 'losses.csv'}, line"
    assert said[0] == f"{start} 7: client 'b' has no finite g_loss in round 2 and is left out of it"
    assert said[3].startswith(f"{start} 13: client 'd'")
    row = written[2, "b"]
    assert [*row.values()][2:] == ["", "false", "false", "0.0"]
    assert written[2, "a"]["weight"] == "1.0"
    assert written[2, "a"]["score"] == ""  # nobody is odd alone
    assert [written[3, name]["weight"] for name in "abcd"] == [repr(1 / 3)] * 3 + ["0.0"]
    assert all(written[3, name]["score"] for name in "abc")


def test_acted_is_said_of_the_round(write, run, quick, tmp_path):
    """Of those too who lost no weight, or were left out."""
    rows = [(r, i, 9.0 if i == 2 else 1.0) for r in range(13) for i in range(5)]
    rows[-1] = (12, 4, "")
    written = run(write(tmp_path / "losses.csv", rows))
    acted = {r: {written[r, str(i)]["acted"] for i in range(5)} for r in range(13)}
    assert acted == {r: {"true" if r > 10 else "false"} for r in range(13)}


def test_numbers_are_sorted_as_numbers_and_before_names(write, run, quick, tmp_path):
    names = ["10", "9", "Z", "a", "-1", "01"]
    written = run(write(tmp_path / "losses.csv", [(1, name, 1.0) for name in names]))
    assert [name for _, name in written] == ["-1", "01", "9", "10", "Z", "a"]


def test_what_is_printed(write, quick, tmp_path, capsys):
    rows = [(r, name, 9.0 if (name, r) in [("Zug", 2), ("Zug", 4), ("Bern", 3), ("Zug", 3)] else 1)
            for r in range(1, 5) for name in ("Zug", "Bern", "Basel", "Chur")]  # fmt: skip
    path = write(tmp_path / "losses.csv", rows)
    assert main(["detect", str(path), "--defense.warm_up=1"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert [line.rstrip() for line in said.out.splitlines()] == [
        "feddetect on g_loss; decay 0.9, compounding; warm-up 1; forest seed 999",
        "",
        "round  flagged  score  weight",
        "    1  nobody",
        "    2  Zug      0.643   0.250  warm-up",
        "    3  Bern     0.643   0.250  too many flagged",
        "       Zug      0.643   0.250  too many flagged",
        "    4  Zug      0.643   0.231  loses weight",
        "",
        "suspected  rounds flagged  lost weight in  final weight  fair weight",
        "Zug                3 of 4               1         0.231        0.250",
        "Bern               1 of 4               0         0.256        0.250",
        "never flagged: Basel, Chur",
    ]
    write(path, [row for row in rows if row[0] == 1])
    assert main(["detect", str(path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "nobody is suspected: none of 4 clients was flagged in any round"


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffround,client,g_loss\r\n1,a,1\r\n1,b,2\r\n1,c,9\r\n",  # as Excel writes it
        " round , client,g_loss\n\n1.0, a ,1\n1,b, 2\n1,c,9\n,,\n",
        'g_loss,"round","client",\n1,1,"a",\n2,1,"b",x\n9,1,"c",\n',
    ],
)
def test_tables_as_people_have_them(run, quick, tmp_path, text):
    path = tmp_path / "losses.csv"
    path.write_bytes(text.encode())
    assert list(run(path)) == [(1, "a"), (1, "b"), (1, "c")]


def test_the_table_of_a_run_is_one_too(write, run, quick, tmp_path):
    """clients.csv has all the columns, and nan where a client was left out."""
    columns = ("round", "client", "n_images", "d_loss", "g_loss", "g_loss_last", "weight", "status")
    rows = [(1, i, 20, 0.1, 1.0, 9.0, 0.25, "ok") for i in range(4)]
    rows.append((1, 4, 60, *["nan"] * 3, 0.0, "timed out"))
    written = run(write(tmp_path / "clients.csv", rows, columns))
    assert [row["weight"] for row in written.values()] == ["0.25"] * 4 + ["0.0"]


def test_an_old_out_is_replaced_and_a_link_to_it_stays(write, rows_of, drawn, run, quick, tmp_path):
    path = write(tmp_path / "in.csv", rows_of(drawn(4, False)))
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "out.csv").symlink_to("real.csv")
    assert len(run(path)) == 160
    assert (tmp_path / "out.csv").is_symlink()


def test_floats_read_back_as_they_were(write, rows_of, drawn, quick, tmp_path):
    rule = FedDetect.published()
    path = write(tmp_path / "in.csv", rows_of(drawn(5, True)))
    findings = replay(rule, read_table(path, rule))
    write_table(findings, tmp_path / "out.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    for row, finding in zip(rows, findings, strict=True):
        assert float(row["weight"]) == finding.weight
        assert float(row["score"]) == finding.score
