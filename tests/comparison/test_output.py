"""The leaderboard on the screen and in files."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from rich.console import Console

import fedgan
from fedgan.cli import main
from fedgan.comparison import compare_runs
from fedgan.comparison.output import to_csv, to_json, to_latex, to_markdown
from fedgan.comparison.screen import print_comparison
from fedgan.comparison.spread import Spread


@pytest.fixture
def comparison(make_run):
    """Three seeds of awkward names, one row of one seed, and a defence that is better."""
    awkward = "50%_a&b|c#1"
    arms = {("none", "none"): 10.0, (awkward, "none"): 30.0, (awkward, "krum"): 15.0}
    runs = [
        make_run(*arm, seed, fd + seed / 10, presence=0.1 * seed, acc_gain_1=0.01 * seed)
        for arm, fd in arms.items()
        for seed in (1, 2, 3)
    ]
    return compare_runs([*runs, make_run(awkward, "median", 1, 11.0, presence=0.5)])


def test_csv_reads_back(comparison):
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert len(rows) == len(comparison.rows) == 4
    krum = next(row for row in rows if row["defense"] == "krum")
    own = comparison.row("mri", "50%_a&b|c#1", "krum")
    assert krum["attack"] == own.attack
    assert float(krum["value_mean"]) == own.value.mean
    assert float(krum["value_std"]) == own.value.std
    assert float(krum["difference_p_holm"]) == own.difference.p_holm
    assert float(krum["recovery"]) == own.recovery.value
    assert krum["harm"] == ""
    attacked = next(row for row in rows if (row["defense"], row["arm"]) == ("none", "attacked"))
    assert float(attacked["harm"]) == pytest.approx(20.0)
    assert float(krum["acc_gain_1_mean"]) == pytest.approx(0.02)
    assert float(krum["detection_auroc_mean"]) == pytest.approx(0.9)
    assert (krum["difference_shown"], krum["seeds"], krum["arm"]) == ("better", "1 2 3", "defended")
    assert (krum["place"], krum["is_worst_case"]) == ("2", "True")
    median = next(row for row in rows if row["defense"] == "median")
    assert (median["value_std"], median["difference_low"]) == ("", "")
    assert float(median["presence_high"]) == pytest.approx(0.6)


def test_markdown_is_a_table_and_bold_is_earned(comparison):
    text = to_markdown(comparison)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    table = lines[: 2 + len(comparison.rows)]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert len(widths) == 1
    bold = [line for line in table if "**" in line]
    assert len(bold) == 1
    assert "| krum | 3 | **15.20 ± 0.10** |" in bold[0]
    assert "one seed" in next(line for line in table if "| median |" in line)
    assert "Holm's correction for the 1 row that is tested" in text
    assert r"50%\_a&b\|c#1, median, seeds 2 and 3: is not among the runs" in text


def test_latex_is_escaped_and_whole(comparison):
    text = to_latex(comparison)
    assert r"50\%\_a\&b|c\#1" in text
    assert r"\textbf{15.20 $\pm$ 0.10}" in text
    assert text.count(r"\textbf") == 1
    assert "±" not in text
    for name in ("table*", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 3
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    for body in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL):
        rows = [line for line in body.splitlines() if line != r"\midrule"]
        assert len({len(re.findall(r"(?<!\\)&", row)) for row in rows}) == 1
        assert all(row.endswith(r" \\") for row in rows)
    # nothing that TeX would take for a comment, but for the first line
    assert not re.search(r"(?<!\\)%(?!$)", text.split("\n", 1)[1], re.MULTILINE)


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_no_screen_is_too_narrow_for_names_and_numbers(comparison, width):
    console = Console(width=width, file=io.StringIO())
    print_comparison(console, comparison)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    for word in ("krum", "median", "15.20", "better", "one seed"):
        assert word in text
    # cells of several lines are whole
    joined = re.sub(r"\s+", "", text)
    assert "50%" in joined


def test_json_holds_it_all(comparison):
    told = json.loads(to_json(comparison))
    row = next(row for row in told["rows"] if row["defense"] == "krum")
    assert row["value"]["by_seed"] == {"1": 15.1, "2": 15.2, "3": 15.3}
    assert (row["arm"], row["utility"], row["is_better"]) == ("defended", ["acc_gain_1"], True)
    assert told["missing"][0]["attack"] == "none"
    assert told["ranking"][0]["defense"] == "median"
    assert told["method"] == comparison.method


def test_the_command_writes_beside_the_grid(write_grid, capsys):
    assert main(["compare", str(write_grid)]) == 0
    said = capsys.readouterr().out
    assert "missing mri, patch, krum, seed 2: failed" in said
    assert "Defences by their worst case over attacks" in said
    for ending in ("csv", "md", "tex"):
        assert f"{write_grid / 'leaderboard'}.{ending}" in said.replace("\n", "")
        assert (write_grid / f"leaderboard.{ending}").read_text()


def test_runs_leave_nothing_behind_unless_out_says_where(write_run, tmp_path, capsys, monkeypatch):
    paths = [str(write_run(name, name, "none", 1, 10.0)) for name in ("none", "patch")]
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", *paths]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["compare", *paths, "--out=new/folder"]) == 0
    assert (tmp_path / "new/folder/leaderboard.csv").is_file()
    assert main(["compare", *paths, f"--out={tmp_path / 'none' / 'config.yaml'}"]) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["csv", "md", "tex", "json"])
def test_scripts_get_nothing_but_the_table(write_grid, capsys, format):
    assert main(["compare", str(write_grid), f"--format={format}"]) == 0
    said = capsys.readouterr()
    if format == "json":
        assert len(json.loads(said.out)["rows"]) == 4
    else:
        assert said.out == (write_grid / f"leaderboard.{format}").read_text()
    assert "written" in said.err


def test_another_figure(write_grid, capsys):
    assert main(["compare", str(write_grid), "--figure=presence", "--format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["figure"] == "presence"
    assert sorted(path.name for path in write_grid.glob("leaderboard*")) == [
        f"leaderboard_presence.{ending}" for ending in ("csv", "md", "tex")
    ]
    assert main(["compare", str(write_grid), "--figure=presense"]) == 2
    assert "did you mean 'presence'?" in capsys.readouterr().err


def test_from_python(write_grid):
    found = fedgan.compare(str(write_grid), figure="fd_domain")
    assert isinstance(found.rows[0].value, Spread)


def test_the_leaderboard_of_a_grid_goes_to_w_and_b_where_its_runs_are(write_grid, capsys):
    assert main(["compare", str(write_grid)]) == 0
    assert not (write_grid / "wandb").exists()  # nobody asked for it
    for path in write_grid.glob("cells/*/config.yaml"):
        text = path.read_text()
        path.write_text(f"{text}tracking: {{wandb: {{project: demo, group: mine, tags: [a]}}}}\n")
    assert main(["compare", str(write_grid), "--figure=presence"]) == 0
    assert not (write_grid / "wandb").exists()  # another figure is not the grid's leaderboard
    assert main(["compare", str(write_grid)]) == 0
    artifacts = list(write_grid.glob("wandb/offline-run-*/files/media/table/leaderboard*.json"))
    assert len(artifacts) == 1
    told = json.loads(artifacts[0].read_text())
    assert len(told["data"]) == 4
    assert {"attack", "defense", "value_mean", "place"} <= set(told["columns"])


def test_a_narrow_screen_has_the_ranking_without_what_files_tell_too(comparison, capsys):
    print_comparison(Console(width=70), comparison)
    narrow = capsys.readouterr().out
    print_comparison(Console(width=200), comparison)
    wide = capsys.readouterr().out
    assert "behind the first" in wide
    assert "behind" not in narrow.partition("worst case")[2].partition("less is better")[0]
