"""The page says what `fedgan compare` says: the same strings, from the same comparison."""

from __future__ import annotations

import html
import json
import re

import pytest

from fedgan.cli import main
from fedgan.comparison import compare
from fedgan.comparison.cells import columns, missing_lines, ranking_columns
from fedgan.comparison.output import to_markdown
from fedgan.report import board, write_report
from fedgan.report.words import ABSENT
from fedgan.runs import Labels

ARMS = {  # distance and presence of seed 1; three seeds, so that there is something to show
    ("none", "none"): (10.0, 0.0),
    ("none", "krum"): (12.0, 0.0),
    ("patch", "none"): (30.0, 0.8),
    ("patch", "krum"): (14.0, 0.2),
    ("patch", "median"): (29.0, 0.7),
    ("sig", "none"): (20.0, 0.5),
    ("sig", "krum"): (28.0, 0.0),
    ("sig", "median"): (19.0, 0.4),
}


def write_grid(folder, make_run, arms, seeds, **changes):
    cells = []
    for seed in seeds:
        for (attack, defense), (distance, presence) in arms.items():
            name = f"{attack}__{defense}__seed-{seed}"
            labels = Labels("blobs", attack, defense, seed)
            noise = 0.1 * seed + 0.05 * (seed == 2) * (defense == "krum")
            figures = {"fd_domain": distance + noise, "presence": presence + 0.01 * seed}
            make_run(folder / "cells" / name, labels, figures, rounds=1, **changes)
            cells.append({"name": name, "labels": labels._asdict(), "run_dir": f"cells/{name}"})
            cells[-1]["state"] = "finished"
    (folder / "grid.json").write_text(json.dumps(cells))
    (folder / "grid.yaml").write_text("base: smoke.yaml\n")
    return folder


@pytest.fixture(scope="module")
def grid(tmp_path_factory, make_run):
    return write_grid(tmp_path_factory.mktemp("three") / "grid", make_run, ARMS, (1, 2, 3))


@pytest.fixture(scope="module")
def page(grid, tmp_path_factory):
    return write_report(grid, tmp_path_factory.mktemp("page") / "x.html").path.read_text()


def tables_of(page):
    """Of each sortable table, by its id: a list of rows, the head first."""
    found = {}
    for name, body in re.findall(r'<table id="([^"]+)"(.*?)</table>', page, re.DOTALL):
        rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        found[name] = [[plain(cell) for cell in row] for row in cells]
    return found


def plain(text):
    return html.unescape(re.sub(r"<[^>]+>", "", text)).replace("\u00a0", " ")


def test_the_leaderboard_has_the_strings_of_compare(page, grid):
    told, comparison = tables_of(page), compare(grid)
    own = [column for column in columns(comparison) if column.head != "data"]
    found = {}
    for name in ("board-0-0", "board-0-1"):
        head, *rows = told[name]
        for i, label in enumerate(head):
            found[label] = [row[i] for row in rows]
    assert found == {c.head: [c.text(row) for row in comparison.rows] for c in own}
    krum = comparison.rows.index(comparison.row("blobs", "patch", "krum"))
    assert re.fullmatch(r"80 % \(\d+ to \d+\)", found["recovery"][krum])  # 16 of 20
    assert re.fullmatch(r"75 % \(75 to 75\)", found["leakage undone"][krum])
    assert found["shown"][krum] == "better"


def test_the_page_has_what_the_command_prints(page, grid, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["compare", str(grid), f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    for name, rows in tables_of(page).items():
        if name.startswith(("board", "places")):
            for row in rows[1:]:
                for cell in filter(None, row):
                    assert cell in printed
    markdown = (tmp_path / "leaderboard.md").read_text()
    assert markdown == to_markdown(compare(grid))


def test_the_ranking_is_that_of_compare(page, grid):
    comparison = compare(grid)
    own = [column for column in ranking_columns(comparison) if column.head != "data"]
    head, *rows = tables_of(page)["places-0"]
    assert head == [column.head for column in own]
    assert rows == [[column.text(one) for column in own] for one in comparison.ranking]
    assert [row[1] for row in rows] == ["krum", "median", "FedAvg"]


def test_bold_is_what_is_shown_to_be_better(page, grid):
    comparison = compare(grid)
    bold = {
        column.text(row)
        for column in columns(comparison)
        for row in comparison.rows
        if column.is_bold(row)
    }
    found = re.findall(r"<td[^>]*><b>(.*?)</b>", page)
    assert {plain(one) for one in found} == bold
    assert bold


def test_cells_are_sorted_by_figures_in_full(grid):
    comparison = compare(grid)
    first, second = board.leaderboard(comparison, "blobs")
    at = first["head"].index("recovery")
    values = [row[at]["sort"] for row in first["rows"]]
    assert values == [row.recovery and row.recovery.value for row in comparison.rows]
    at = second["head"].index("trigger presence")
    assert [row[at]["sort"] for row in second["rows"]] == [
        row.presence.mean for row in comparison.rows
    ]


def test_the_heat_map_has_the_leaderboards_ratios(grid):
    comparison = compare(grid)
    ratio, presence = board.heat_maps(comparison, "blobs")
    assert ratio["columns"] == ["FedAvg", "krum", "median"]
    text = {column.head: column.text for column in columns(comparison)}
    for map, name in ((ratio, "/ clean"), (presence, "trigger presence")):
        for line in map["rows"]:
            attack = "none" if line["label"] == "no attack" else line["label"]
            for column, cell in zip(map["columns"], line["cells"], strict=True):
                row = comparison.row("blobs", attack, column.replace("FedAvg", "none"))
                if row is None:
                    assert (cell["text"], cell["sub"]) == (ABSENT, "not run")
                else:
                    assert cell["text"] == text[name](row)
    (under_patch,) = [line for line in ratio["rows"] if line["label"] == "patch"]
    assert [cell["sub"] for cell in under_patch["cells"]] == ["worse", "better", "better"]


def test_method_and_notes_are_those_of_compare(made_grid, tmp_path):
    page = write_report(made_grid, tmp_path / "x.html").path.read_text()
    comparison = compare(made_grid)
    text = plain(page)
    assert comparison.method in text
    assert comparison.notes
    lines = [f"Missing: {line}" for line in missing_lines(comparison.missing)]
    for one in (*comparison.notes, *lines):
        assert one in text


def test_a_grid_with_one_finished_run_has_a_page(tmp_path, make_run):
    source = write_grid(tmp_path / "one", make_run, {("patch", "none"): (30.0, 0.8)}, (1,))
    cells = json.loads((source / "grid.json").read_text())
    more = {**cells[0], "name": "b", "run_dir": "cells/b", "state": "failed"}
    more["labels"] = {**more["labels"], "defense": "krum"}
    (source / "grid.json").write_text(json.dumps([*cells, more]))
    page = write_report(source).path.read_text()
    assert "No leaderboard: needs two finished runs or more" in page
    assert "found 1 of 2 cells" in page
    assert "Missing: blobs, patch, krum, seed 1: failed" in page
    assert "client 0 attacking (patch)" in page
    assert 'id="panel-0"' in page
    assert 'id="leaderboard"' not in page
    assert "data:image/png" in page


def test_runs_that_cannot_be_compared_have_a_page_and_the_reason(tmp_path, make_run, capsys):
    arms = {arm: ARMS[arm] for arm in (("none", "none"), ("patch", "none"))}
    source = write_grid(tmp_path / "odd", make_run, arms, (1,))
    odd = source / "cells/patch__none__seed-1/summary.json"
    summary = json.loads(odd.read_text())
    summary["final"]["samples"] = 50
    odd.write_text(json.dumps(summary))
    assert main(["compare", str(source)]) == 2
    reason = capsys.readouterr().err
    assert "number of images measured is 100 in the first and 50 in the second" in reason
    page = write_report(source).path.read_text()
    assert "number of images measured is 100 in the first and 50 in the second" in page
    assert "These 2 runs cannot stand in one leaderboard" in page
    assert "none__none__seed-1 and patch__none__seed-1 cannot be compared" in page
    assert 'id="all-runs"' in page
    assert 'id="leaderboard"' not in page
