"""The page in a real browser."""

from __future__ import annotations

import json

import pytest

from fedgan.report import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(made_grid, tmp_path_factory):
    return write_report(made_grid, tmp_path_factory.mktemp("pages") / "grid.html").path


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_opens_from_the_disk_without_a_sound(browser, page, width, dark):
    browser.open(page, width, dark=dark)
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.run("document.documentElement.scrollWidth") <= width
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(19, 22, 26)" if dark else "rgb(250, 249, 247)")
    broken = "[...document.images].filter(i => !(i.complete && i.naturalWidth)).length"
    assert browser.run(broken) == 0
    assert browser.run("document.images.length") >= 4


def test_an_error_and_an_outside_request_would_be_seen(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<img src='http://outside.invalid/x.png'><script>nothing.there()</script>")
    browser.open(bad)
    assert any("nothing" in error for error in browser.errors)
    assert "http://outside.invalid/x.png" in browser.requests


def test_the_slider_moves_the_pictures_of_all_arms(browser, page):
    browser.open(page)
    pictures = "[...document.querySelectorAll('#scene-0 img')].map(i => i.src)"
    before = browser.run(pictures)
    browser.run(
        "(() => { const r = document.querySelector('#scene-0 input'); r.value = 0;"
        " r.dispatchEvent(new Event('input')); })()"
    )
    after = browser.run(pictures)
    assert len(after) == 4
    assert all(a != b for a, b in zip(after, before, strict=True))
    film = browser.run("JSON.parse(document.getElementById('film').textContent)")
    names = browser.run("[...document.querySelectorAll('#scene-0 img')].map(i => i.dataset.run)")
    assert after == [film[name]["1"] for name in names]
    assert before == [film[name]["3"] for name in names]
    assert browser.run("document.querySelector('#scene-0 output').textContent") == "round 1"
    captions = "[...document.querySelectorAll('#scene-0 [data-caption]')].map(c => c.textContent)"
    assert all(text.startswith("round 1 ") for text in browser.run(captions))
    assert browser.errors == []


def test_play_goes_through_the_rounds_and_stops(browser, page):
    browser.open(page)
    told = browser.run(
        "new Promise(done => { const scene = document.getElementById('scene-0'); const seen = [];"
        " const note = () => seen.push(scene.querySelector('output').textContent);"
        " new MutationObserver(note).observe(scene.querySelector('output'), {childList: true});"
        " scene.querySelector('.play').click();"
        " const play = scene.querySelector('.play'); const t = Date.now();"
        " const timer = setInterval(() => { if (play.textContent == '▶' || Date.now() - t > 1e4)"
        " { clearInterval(timer); done([seen, play.textContent]); } }, 100); })"
    )
    assert told == [["round 1", "round 2", "round 3"], "▶"]


def test_a_click_on_a_head_sorts(browser, page):
    browser.open(page)
    head = "[...document.querySelectorAll('#all-runs th')].find(h => h.textContent == 'distance')"
    values = (
        f"(() => {{ const c = {head}.cellIndex; return [...document.querySelectorAll("
        "'#all-runs tbody tr')].map(r => Number(r.cells[c].dataset.value)); })()"
    )
    given = browser.run(values)
    browser.run(f"{head}.querySelector('button').click()")
    assert browser.run(values) == sorted(given) != given
    assert browser.run(f"{head}.getAttribute('aria-sort')") == "ascending"
    browser.run(f"{head}.querySelector('button').click()")
    assert browser.run(values) == sorted(given, reverse=True)


def test_the_figures_are_those_of_summary_json(browser, page, made_grid):
    browser.open(page)
    told = browser.run(
        "Object.fromEntries([...document.querySelectorAll('.panel')].map(p => [p.dataset.run,"
        " Object.fromEntries([...p.querySelectorAll('[data-figure]')].filter(c => c.dataset.value)"
        ".map(c => [c.dataset.figure, [Number(c.dataset.value), c.textContent]]))]))"
    )
    assert len(told) == 4
    for name, figures in told.items():
        summary = json.loads((made_grid / "cells" / name / "summary.json").read_text())
        plain = {k: v for k, v in summary["figures"].items() if not k.endswith(("_low", "_high"))}
        assert {key: value for key, (value, _) in figures.items()} == plain
        low, high = (summary["figures"][f"presence_{end}"] for end in ("low", "high"))
        row = f"[data-run='{name}'] [data-figure=presence]"
        ends = browser.run(f'document.querySelector("{row}").parentNode.cells[4].textContent')
        assert ends == f"{100 * low:.1f}\u00a0% to {100 * high:.1f}\u00a0%".replace(
            ".0\u00a0", "\u00a0"
        )


def test_the_menu_shows_one_run_at_a_time(browser, page):
    browser.open(page)
    shown = "[...document.querySelectorAll('.panel')].filter(p => p.offsetHeight).map(p => p.id)"
    assert len(browser.run(shown)) == 1
    browser.run(
        "(() => { const m = document.querySelector('select[data-shows=panel]');"
        " m.value = 'panel-3'; m.dispatchEvent(new Event('change')); })()"
    )
    assert browser.run(shown) == ["panel-3"]


def test_it_prints(browser, page, tmp_path):
    browser.open(page, dark=True)
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_of_a_single_run(browser, made_grid, tmp_path):
    one = made_grid / "cells" / "patch__feddetect__seed-1"
    browser.open(write_report(one, tmp_path / "run.html").path, 390)
    assert browser.errors == []
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.run("document.querySelectorAll('.heat, #all-runs, select').length") == 0
    assert browser.run("document.querySelectorAll('.panel svg[viewBox]').length") >= 4


def test_the_leaderboard_sorts_by_figures(browser, page):
    browser.open(page)
    head = "[...document.querySelectorAll('#board-0-0 th')].find(h => h.textContent == 'distance')"
    values = (
        f"(() => {{ const c = {head}.cellIndex; return [...document.querySelectorAll("
        "'#board-0-0 tbody tr')].map(r => Number(r.cells[c].dataset.value)); })()"
    )
    given = browser.run(values)
    browser.run(f"{head}.querySelector('button').click()")
    assert browser.run(values) == sorted(given) != given
    assert browser.errors == []
