"""What the page says, and what it is made of."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from fedgan import runs as reading
from fedgan.cli import main
from fedgan.comparison import compare_runs
from fedgan.report import charts, pictures, render, write_report
from fedgan.report.scenes import scenes_of
from fedgan.report.verdict import verdict_of_grid, verdict_of_run
from fedgan.runs import Labels, read_grid_dir, read_run


def labelled(attack="patch", defense="none", seed=1, data="blobs"):
    return Labels(data, attack, defense, seed)


@pytest.fixture
def runs_of(tmp_path, make_run):
    """Runs by (attack, defence, seed): (distance, presence)."""

    def make(told):
        found = []
        for (attack, defense, seed), (distance, presence) in told.items():
            labels = labelled(attack, defense, seed)
            figures = {"fd_domain": distance, "presence": presence}
            path = make_run(tmp_path / "-".join(map(str, labels)), labels, figures)
            found.append(read_run(path, labels))
        return found

    return make


def grid_verdict(runs):
    """Label: lead and text, of a grid on one data set."""
    lines = verdict_of_grid(compare_runs(runs), runs, "blobs")
    return {line.label: f"{line.lead} {line.text}" for line in lines}


def test_the_verdict_of_a_grid_follows_from_its_figures(runs_of):
    seeds = (1, 2, 3)
    told = {("none", "none", s): (10 + s, 0.0) for s in seeds}
    told |= {("patch", "none", s): (20 + s + s / 10, 0.5) for s in seeds}
    told |= {("patch", "feddetect", s): (12 + s, 0.25) for s in seeds}
    told |= {("patch", "median", s): (22.2 + s % 2, 0.0) for s in seeds}
    said = grid_verdict(runs_of(told))
    assert said["The attack"].startswith("patch does harm. ")
    assert "against clean +10.20 (+9.95 to +10.45): shown to be worse" in said["The attack"]
    assert "trigger is in 50 ± 0 % " in said["The attack"]
    assert said["The defences"].startswith("feddetect is best, and shown to be better than none. ")
    assert (
        "first of 3, plain FedAvg among them, at a distance of 14.0 ± 1.0 (1.17"
        in (said["The defences"])
    )
    assert "Recovery: 80 % (" in said["The defences"]  # 8.2 of 10.2
    assert "leakage undone: 50 % (50 to 50); trigger left in 25 ± 0 % of" in said["The defences"]
    assert "1 of 2 defences is shown to keep the distance down." in said["The defences"]
    assert (
        "Distance: shown to be better with feddetect; nothing shown of median."
        in (said["The defences"])
    )
    assert "presence: shown to be better with feddetect and median." in said["The defences"]
    assert said["How sure"].startswith("All others are shown to be behind feddetect. 3 seeds")
    assert "(utility)" in said["How sure"]
    assert "one seed" not in " ".join(said.values())


def test_the_verdict_says_one_seed_and_when_a_defence_does_nothing(runs_of):
    told = {("none", "none", 1): (10, 0.0), ("patch", "none", 1): (11, 0.1)}
    told |= {("patch", "median", 1): (12, 0.1)}
    said = grid_verdict(runs_of(told))
    assert "with one seed, no harm can be shown" in said["The attack"]
    assert "None: plain FedAvg comes first. The defence, median, ends at" in said["The defences"]
    assert "median is not shown to keep the distance down" in said["The defences"]
    assert "nothing shown of median (one seed)" in said["The defences"]
    assert "That FedAvg comes first is not shown: median may be as good." in said["How sure"]
    assert "no difference can be shown" in said["How sure"]


def test_the_verdict_is_as_strict_as_the_leaderboard(runs_of):
    """An interval without 0 is not enough where several rows are tested: Holm's correction."""
    told = {("none", "none", s): (10, 0.0) for s in (1, 2)}
    told |= {("patch", "none", s): (30 + s, 0.0) for s in (1, 2)}
    told |= {("patch", "krum", s): (20 + 1.5 * s, 0.0) for s in (1, 2)}  # p = 0.017
    for i in range(9):
        told |= {("patch", f"rule{i}", s): (40 + 9 * (s == 1), 0.0) for s in (1, 2)}
    runs = runs_of(told)
    krum = compare_runs(runs).row("blobs", "patch", "krum")
    assert krum.difference.high < 0
    assert krum.difference.shown == "nothing shown"
    said = grid_verdict(runs)
    assert "krum is best, but not shown to be better than none." in said["The defences"]
    assert "None of 10 defences is shown" in said["The defences"]


def test_a_harm_within_the_spread_is_called_so(runs_of):
    told = {("none", "none", 1): (10, 0.0), ("none", "none", 2): (14, 0.0)}
    told |= {("patch", "none", 1): (12, 0.1), ("patch", "none", 2): (13, 0.1)}
    said = grid_verdict(runs_of(told))
    assert "patch is not shown to do harm." in said["The attack"]
    assert said["The defences"].strip() == "No defence was run."
    assert said["How sure"].startswith("Few seeds show little. 2 seeds")


def test_the_verdict_of_worst_cases_takes_the_worst_attack(runs_of):
    told = {("none", "none", 1): (10, 0.0)}
    for attack, of_median, of_krum in (("patch", 11, 14), ("sig", 19, 15)):
        told |= {(attack, "none", 1): (20, 0.1), (attack, "median", 1): (of_median, 0.1)}
        told |= {(attack, "krum", 1): (of_krum, 0.1)}
    said = grid_verdict(runs_of(told))
    assert said["The defences"].startswith("krum is best, with one seed")
    assert "a distance of 15 (1.50 times clean) in its worst case, sig;" in said["The defences"]


def test_where_nobody_attacks_the_verdict_is_of_false_alarms(runs_of):
    told = {("none", "none", 1): (10, 0.0), ("none", "median", 1): (13, 0.0)}
    runs = runs_of(told)
    said = grid_verdict(runs)
    assert said["The attack"].strip() == "Nobody attacks here."
    assert said["The defences"].startswith("median: with one seed, no cost can be shown. It ends")
    assert "ends at a distance of 13 (1.30 times clean)" in said["The defences"]
    assert "No defence flags anybody" in said["The defences"]
    assert said["How sure"].startswith("One seed shows nothing. One seed, on 100")
    said = grid_verdict([*runs, *runs_of({("none", "krum", 1): (11, 0.0)})])
    assert "Of 2 defences it costs most: a distance of 13" in said["The defences"]


@pytest.mark.parametrize("gone", [("none", "none"), ("patch", "none"), ("patch", "krum")])
def test_a_verdict_is_there_when_an_arm_is_not(runs_of, gone):
    arms = {("none", "none"): 10, ("patch", "none"): 20, ("patch", "krum"): 15}
    arms["patch", "median"] = 16
    del arms[gone]
    said = grid_verdict(runs_of({(*arm, 1): (fd, 0.1) for arm, fd in arms.items()}))
    assert list(said) == ["The attack", "The defences", "How sure"]
    assert ("not known" in said["The attack"]) == (gone != ("patch", "krum"))
    assert ("Which help is not known" in said["The defences"]) == (gone == ("patch", "none"))


def test_the_verdict_of_a_run_says_what_it_cannot_tell(runs_of):
    (run,) = runs_of({("patch", "feddetect", 1): (12.0, 0.25)})
    what, outcome, sure = (line.text for line in verdict_of_run(run))
    assert "client 0 attacking (patch), with feddetect" in what
    assert "ends at 12" in outcome
    assert "attackers in 1 of 3 client-rounds, benign clients in 0 of 6" in outcome
    assert "one seed" in sure
    assert "without the clean and the undefended run" in sure


def test_scenes_leave_out_what_there_is_no_room_for(runs_of):
    told = {("none", "none", 1): (10, 0.0), ("patch", "none", 1): (11, 0.1)}
    told |= {("patch", f"rule{i}", 1): (12, 0.1) for i in range(5)}
    (scene,) = scenes_of(runs_of(told), most=4)
    assert [arm.title for arm in scene.arms] == ["clean", "undefended", "rule0", "rule1"]
    assert scene.left_out == 3


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_pictures_hold_the_pixels_of_the_samples(runs_of):
    (run,) = runs_of({("patch", "none", 1): (12.0, 0.25)})
    (film,) = pictures.films([run])
    assert sorted(film) == [1, 2, 3]
    picture = np.array(decoded(film[2].uri).convert("LA"))
    assert picture.shape == (2 * 16 + 1, 3 * 16 + 2, 2)  # a transparent pixel between
    gray, alpha = picture[..., 0], picture[..., 1]
    assert gray[0, 0] == 255
    assert set(gray[:16, :16].ravel()) == {80, 255}
    assert (alpha[16] == 0).all()
    assert film[2].classes == ("dark & <dim>", "light")


def test_pictures_keep_to_their_budget(tmp_path, make_run):
    path = make_run(tmp_path / "x", labelled(), {"fd_domain": 1.0}, rounds=40, size=48, columns=8)
    rng = np.random.default_rng(0)
    for sample in (path / "samples").iterdir():  # noise, so that nothing compresses
        with Image.open(sample) as old:
            info, shape = old.info[pictures.LAYOUT], (*old.size[::-1], 3)
        sheet = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        sheet.info[pictures.LAYOUT] = info
        from fedgan.tracking.pictures import png_info

        sheet.save(sample, pnginfo=png_info(sheet))
    (film,) = pictures.films([read_run(path)], budget=600_000)
    total = sum(len(grid.uri) * 3 / 4 for grid in film.values())
    assert total < 620_000
    assert len(film) >= 8
    assert {1, 40} <= set(film)


def test_pictures_of_an_older_fedgan_are_shown_whole(runs_of):
    (run,) = runs_of({("patch", "none", 1): (12.0, 0.25)})
    for sample in (run.path / "samples").iterdir():
        with Image.open(sample) as old:
            old.load()
        Image.fromarray(np.array(old)).save(sample)
    (film,) = pictures.films([run])
    assert film[3].classes == ()


def test_a_broken_picture_is_one_line(runs_of, capsys):
    (run,) = runs_of({("patch", "none", 1): (12.0, 0.25)})
    path = run.path / "samples" / "round_0002.png"
    path.write_bytes(path.read_bytes()[:60])
    assert main(["report", str(run.path)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "round_0002.png" in told


def test_a_single_round_can_be_seen(tmp_path, make_run):
    """A line of one point is nothing: it needs a mark."""
    path = make_run(tmp_path / "x", labelled("none"), {"fd_domain": 1.0}, rounds=1)
    run = read_run(path, labelled("none"))
    for key in ("g_loss", "weight"):
        svg = charts.client_chart(run, key, "one")
        assert len(re.findall(r"<use[^>]*var\(--benign\)", svg)) == 3, key
    assert re.findall(r"<use[^>]*var\(--ink\)", svg)  # FedAvg's weight
    (scene,) = scenes_of([run])
    assert re.findall(r"<use[^>]*var\(--arm0\)", charts.arms_chart(scene.arms, "fd_domain", "a"))
    assert re.findall(r">([\d.]+)</text>", svg)[0] == "1"  # rounds are whole numbers
    assert "for 1 round, " in verdict_of_run(run)[0].text


def test_many_clients_keep_a_chart_small(tmp_path, make_run):
    run = read_run(make_run(tmp_path / "x", labelled("none"), {"fd_domain": 1.0}, rounds=1))
    rows = [
        {"client": float(c), "round": float(r), "g_loss": 1 + c / 100 + r / 7, "flagged": False}
        for c in range(200)
        for r in range(1, 201)
    ]
    svg = charts.client_chart(replace(run, clients=rows), "g_loss", "many")
    assert svg.count("<title>client ") == 200
    assert len(svg) < 300_000


def test_a_loss_that_is_no_number_leaves_the_axis_logarithmic(tmp_path, make_run):
    run = read_run(make_run(tmp_path / "x", labelled("none"), {"fd_domain": 1.0}))
    row = {"client": 0.0, "round": 1.0, "g_loss": float("nan"), "flagged": False}
    losses = [1.0, 1.5, 2.0, 1000.0]
    told = [row, *({**row, "round": i + 2.0, "g_loss": loss} for i, loss in enumerate(losses))]
    svg = charts.client_chart(replace(run, clients=told), "g_loss", "odd")
    assert ">500<" in svg  # of 1, 2 and 5 times powers of ten
    assert ">10<" in svg


def test_charts_take_their_colours_from_the_page(runs_of):
    (run,) = runs_of({("patch", "feddetect", 1): (12.0, 0.25)})
    svg = charts.client_chart(run, "g_loss", "one")
    assert "var(--bad)" in svg
    assert "var(--benign)" in svg
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)  # a colour of its own would not follow dark
    assert "<title>client 0, malicious</title>" in svg
    names = set(re.findall(r'id="([^"]+)"', svg))
    assert all(name.startswith("one-") for name in names)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= names
    assert svg == charts.client_chart(run, "g_loss", "one")


def test_the_page_is_whole_and_the_same_each_time(made_grid):
    first, again = (write_report(made_grid, made_grid.parent / f"{i}.html") for i in (1, 2))
    text = first.path.read_text()
    assert text == again.path.read_text()
    assert text.startswith("<!DOCTYPE html>")
    assert first.n_bytes == first.path.stat().st_size < 2_000_000
    assert first.runs == 7
    assert "small &amp; &lt;odd&gt;" in text
    assert "<odd>" not in text
    assert "<dim>" not in text
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]*"', text)
    assert "Missing: blobs, patch, median, seed 2: failed" in text
    assert text.count("few images") == 1
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))


@pytest.fixture(scope="module")
def text(made_grid):
    found, missing = read_grid_dir(made_grid)
    return render(found, "x", grid=made_grid, missing=missing)


def test_headings_are_in_order_and_pictures_have_words(text):
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert all('alt="' in image for image in re.findall(r"<img[^>]*>", text))
    assert all(
        re.search(r'aria-label="[^"]+"', one) for one in re.findall(r'<div role="img"[^>]*>', text)
    )


def luminance(colour):
    values = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_are_told_from_the_ground(text, theme):
    """WCAG 2: 4.5 for text, 3 for lines of charts."""
    root = re.findall(r":root \{(.*?)\}", text, re.DOTALL)[theme]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", root))
    ground = luminance(colours["page"])
    for name, least in {"ink": 7, "quiet": 4.5, "link": 4.5, "bad": 4.5, "benign": 3}.items():
        one = luminance(colours[name])
        assert (max(one, ground) + 0.05) / (min(one, ground) + 0.05) >= least, name
    for i in range(6):
        one = luminance(colours[f"arm{i}"])
        assert (max(one, ground) + 0.05) / (min(one, ground) + 0.05) >= 3, i


def test_the_command_writes_into_the_run_and_says_how_large(runs_of, capsys):
    (run,) = runs_of({("patch", "feddetect", 1): (12.0, 0.25)})
    assert main(["report", str(run.path)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"report\.html \(1 run, \d+ kB\)", told)
    text = (run.path / "report.html").read_text()
    assert "Attack by defence" not in text
    assert "fedgan train config.yaml" in text


def test_the_command_of_a_grid_has_what_its_command_line_changed(made_grid, tmp_path):
    """Without it the same command would make another grid."""
    folder = tmp_path / "grid"
    shutil.copytree(made_grid, folder)
    with (folder / "grid.yaml").open("a") as file:
        file.write("\n# and from the command line: --federation.rounds=5\n")
        file.write("\n# and from the command line: --evaluate.rounds=[2]\n")
    found, missing = read_grid_dir(folder)
    page = html.unescape(render(found, "x", grid=folder, missing=missing))
    assert "fedgan grid grid.yaml --federation.rounds=5 '--evaluate.rounds=[2]'\n" in page


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("nothing", "neither a run"),
        ("no folder", "no such folder"),
        ("unfinished", "has not finished"),
        ("no cell", "no cell of this grid has finished"),
        ("bad out", "no name of a file.html"),
    ],
)
def test_bad_input_is_one_line(tmp_path, make_run, capsys, change, word):
    source, options = tmp_path / "here", []
    if change == "unfinished":
        make_run(source, labelled(), {"fd_domain": 1.0})
        (source / reading.SUMMARY).unlink()
    elif change == "no cell":
        source.mkdir()
        cell = {"name": "a", "labels": labelled()._asdict(), "run_dir": "a", "state": "missing"}
        (source / "grid.json").write_text(json.dumps([cell]))
    elif change != "no folder":
        source.mkdir()
    if change == "bad out":
        options = ["--out", str(tmp_path)]
    assert main(["report", str(source), *options]) == 2
    told = capsys.readouterr().err
    assert word in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("same", [True, False])
def test_what_measures_say_and_draw_of_this_generator(make_run, tmp_path, same):
    """The words without which a figure means little, and not those of another generator."""
    run = make_run(tmp_path / "run", Labels("blobs", "none", "none", 1), {"fd_domain": 2.0})
    summary = json.loads((run / "summary.json").read_text())
    Image.new("L", (8, 8)).save(run / "pairs.png")
    told = {
        "generator_sha256": summary["generator_sha256"] if same else "1" * 64,
        "figures": {"memory_domain": 0.25},
        "final": {**summary["final"], "measures": ["memory"]},
        "details": {"memory": {"notes": ["A screen & no guarantee"]}, "presence": {"notes": ["x"]}},
        "pictures": {"memory": ["pairs.png", "gone.png"]},
    }
    (run / "evaluation.json").write_text(json.dumps(told))
    text = write_report(run).path.read_text()
    assert ("A screen &amp; no guarantee" in text) == same
    assert text.count("its picture; the words are below") == same
