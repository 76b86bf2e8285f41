"""Tables and arguments that are refused in one line."""

from __future__ import annotations

import os
import re

import pytest

from fedgan.cli import main

GOOD = "round,client,g_loss\n1,a,1\n1,b,2\n1,c,3\n"
BAD = [  # the table, what the line must say
    ("", r"losses\.csv: an empty table"),
    ("\n ,\n", r"losses\.csv: an empty table"),
    ("round,client,g_loss\n", r"losses\.csv: an empty table"),
    ("round,client,loss\n1,a,1\n", r"losses\.csv: no column g_loss; found round, client, loss"),
    ("a;b\n", r"no column round, client, g_loss; found a;b"),
    ("round,client,g_loss,round\n", r"2 columns are called round"),
    (f"{GOOD}2,a,high\n", r"losses\.csv, line 5: g_loss 'high' is not a number"),
    (f"{GOOD}\n\nx,a,1\n", r"losses\.csv, line 7: round 'x' is not a number"),
    (f"{GOOD}1.5,a,1\n", r"line 5: round '1\.5' is not a whole number from 0 up"),
    (f"{GOOD}-1,a,1\n", r"line 5: round '-1' is not a whole"),
    (f"{GOOD},a,1\n", r"line 5: round '' is not a whole"),
    (f"{GOOD}inf,a,1\n", r"line 5: round 'inf' is not a whole"),
    (f"{GOOD}1,,1\n", r"line 5: client is empty"),
    (f"{GOOD}1,a,5\n", r"line 5: client 'a' is in round 1 twice; first on line 2"),
    (f"{GOOD}1,d\n", r"line 5: 2 values, where the header has 3 columns"),
    (f"{GOOD}1,d,1,2\n", r"line 5: 4 values"),
    (f"{GOOD}1,'\0,\xff".encode("latin-1"), r"losses\.csv: cannot be read"),
    (GOOD.replace("3\n", "nan\n"), r"no round has 3 clients with a g_loss; feddetect needs at le"),
    (GOOD.replace("1,c", "2,c"), r"no round has 3 clients"),
    ("round,client,g_loss,n_images\n1,a,1,many\n", r"line 2: n_images 'many' is not a number"),
    ("round,client,g_loss,n_images\n1,a,1,0\n", r"line 2: n_images '0' is not a number above 0"),
    ("round,client,g_loss,n_images\n1,a,1,\n", r"line 2: n_images '' is not a number above 0"),
]


def refused(capsys, words, *argv):
    """The command fails with code 2 and its last line on stderr says `words`."""
    assert main(["detect", *map(str, argv)]) == 2
    said = capsys.readouterr()
    *warned, last = said.err.splitlines()
    assert last.startswith("fedgan: error: ")
    assert re.search(words, last), last
    assert all("is left out of it" in line for line in warned)
    assert said.out == ""


@pytest.mark.parametrize(("text", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_tables(tmp_path, capsys, text, words):
    path = tmp_path / "losses.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(capsys, words, path, f"--out={tmp_path / 'out.csv'}")
    assert os.listdir(tmp_path) == ["losses.csv"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "required: LOSSES.csv"),
        (["no.csv"], "no.csv: no such file"),
        (["folder"], "folder: a folder; name the table"),
        (["in.csv", "--seed=2"], "unexpected argument '--seed=2'; detect takes --defense.KEY=VAL"),
        (["in.csv", "--defense.loss"], "unexpected argument '--defense.loss'; detect takes"),
        (["in.csv", "--defense.forest_seed=-3"], "forest_seed is -3"),
        (["in.csv", "more.csv"], "unexpected argument 'more.csv'"),
        (["in.csv", "--defense.warm_pu=2"], "warm_pu: unknown argument; did you mean 'warm_up'"),
        (["in.csv", "--defense.warm_up=soon"], "warm_up.*soon"),
        (["in.csv", "--defense.warm_up=-1"], "warm_up is -1"),
        (["in.csv", "--defense.decay=2"], r"decay is 2\.0; it must be in \(0, 1\]"),
        (["in.csv", "--defense.loss=q_loss"], "loss.*both"),
        (["in.csv", "--defense.loss=d_loss"], "in.csv: no column d_loss; found round, client, g_"),
        (["in.csv", "--defense.loss=both_last"], "in.csv: no column d_loss"),
        (["in.csv", "--defense.name=fedavg"], "defense: fedavg does not judge by losses alone"),
        (["in.csv", "--defense.name=krumm"], "defense.name: unknown 'krumm'"),
        (["in.csv", "--out=in.csv"], "--out: in.csv is the table that is read"),
        (["in.csv", "--out=folder/../in.csv"], "--out: .* is the table that is read"),
        (["in.csv", "--out=link.csv"], "--out: link.csv is the table that is read"),
        (["in.csv", "--out=nowhere/out.csv"], "--out: nowhere is no folder"),
        (["in.csv", "--out=folder"], "--out: folder is no file"),
        (["in.csv", "--out=/dev/null"], "--out: /dev/null is no file"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text(GOOD)
    (tmp_path / "link.csv").symlink_to("in.csv")
    (tmp_path / "folder").mkdir()
    refused(capsys, words, *argv)
    assert (tmp_path / "in.csv").read_text() == GOOD
    assert sorted(os.listdir(tmp_path)) == ["folder", "in.csv", "link.csv"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everything")
def test_out_in_a_folder_that_is_read_only(write, rows_of, drawn, quick, tmp_path, capsys):
    path = write(tmp_path / "in.csv", rows_of(drawn(4, False)))
    (tmp_path / "folder").mkdir(mode=0o555)
    refused(capsys, "--out: .* cannot be written", path, f"--out={tmp_path / 'folder' / 'x.csv'}")
