"""Plain lines where there is no terminal, the log file, and the tables at the end."""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.console import Console

from fedgan.tracking.base import Observer, Observers
from fedgan.tracking.console import LogFile, Screen

SUMMARY = {
    "figures": {"fd_domain": 2.0, "fd_domain_floor": 0.5, "fd_domain_ratio": 4.0}
    | {"presence": 0.25, "presence_low": 0.2, "presence_high": 0.3, "presence_amplitude": 0.125},
    "final": {"encoders": [{"name": "domain"}], "samples": 8},
    "details": {"presence": {"notes": ["seen [badly]"]}},
    "failed": {"utility": "no [labels]"},
    "defense": "feddetect",
    "clients": [
        {"client": 0, "malicious": True, "n_images": 30, "rounds": 5, "flagged_rounds": [3, 4]}
        | {"suppressed_rounds": [4], "final_weight": 0.123, "fair_weight": 0.5},
        {"client": 1, "malicious": False, "n_images": 30, "rounds": 0, "flagged_rounds": []}
        | {"suppressed_rounds": [], "final_weight": None, "fair_weight": 0.5},  # never drawn
    ],
    "notes": ["measured on [few] images"],
    "rounds": 5,
    "seconds": 75.0,
    "images_per_second": 321.0,
    "device": "CPU (1 of 2 cores)",
    "run_dir": "runs/x",
    "last_samples": "samples/round_0005.png",
}


def said(info, record, *, terminal):
    file = io.StringIO()
    screen = Screen(Console(file=file, width=120, force_terminal=terminal))
    screen.on_start(info)
    for round in (1, 2, 3):
        for client in range(3):
            screen.on_client(round, client, 20)
        screen.on_measured("encoding", 5, 10, False)
        screen.on_round(record(round, figures={"fd_domain_ratio": 3.21}))
    screen.on_end(SUMMARY)
    screen.close()
    return file.getvalue()


def test_plain_lines_where_there_is_no_terminal(info, record):
    text = said(info, record, terminal=False)
    assert "\x1b" not in text
    lines = [line for line in text.splitlines() if line.startswith("round ")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    for words in (
        "g_loss 2.000",
        "flagged client 2 (acted)",
        "fd_domain_ratio 3.21",
        "48 images/s",
    ):
        assert words in lines[0]
    assert "client 1 left out: non-finite loss" in lines[0]
    assert "0:00 left" in lines[2]


def test_a_full_look_says_what_it_does_once(info):
    file = io.StringIO()
    screen = Screen(Console(file=file, width=120))
    screen.on_start(info)
    for done in (1, 2):
        screen.on_measured("watched", done, 2, False)
        screen.on_measured("training classifiers", done, 2, True)
    screen.close()
    assert file.getvalue().count("training classifiers: 2") == 1
    assert "watched" not in file.getvalue()


def test_a_bar_on_a_terminal(info, record):
    text = said(info, record, terminal=True)
    assert "\x1b" in text
    assert "round 3/3, client 2" in text or "100 %" in text


def test_who_holds_what_and_what_it_came_to(info, record):
    text = said(info, record, terminal=False)
    for words in ("2 malicious", "thick [sic]", "25.0% (20.0% to 30.0%)", "0.123", "4.00"):
        assert words in text
    assert re.search(r"its median amplitude\W+12\.5%", text)
    assert "lost weight in" in text
    cells = [re.findall(r"[\w.][\w. ]*\w|\w", line) for line in text.splitlines()]
    assert ["0 malicious", "30", "2 of 5", "3", "4", "1", "0.123", "0.500"] in cells
    assert ["1", "30", "0 of 0", "0", "0.500"] in cells
    assert "5 rounds in 1:15, 321 images/s on CPU" in text
    assert "runs/x/samples/round_0005.png" in text
    assert "measured on [few] images" in text
    assert "presence seen [badly]" in text
    assert "utility could not be measured: no [labels]" in text


def test_log_file_holds_lines_and_warnings_and_lets_go(info, record, tmp_path):
    log = LogFile(tmp_path / "log.txt")
    log.on_start(info)
    log.on_round(record(1))
    logging.getLogger("fedgan.somewhere").warning("a word of warning")
    assert "round 1/3" in (tmp_path / "log.txt").read_text()
    log.close()
    logging.getLogger("fedgan.somewhere").warning("too late")
    text = (tmp_path / "log.txt").read_text()
    assert "WARNING a word of warning" in text
    assert "too late" not in text


def test_everybody_is_told_in_order(info, record):
    heard = []

    class Ear(Screen):
        def __init__(self, name):
            self.name = name

        def __getattribute__(self, name):
            if name.startswith("on_") or name == "close":
                return lambda *args: heard.append((name, object.__getattribute__(self, "name")))
            return object.__getattribute__(self, name)

    both = Observers([Ear("a"), Ear("b")])
    both.on_start(info)
    both.on_client(1, 0, 5)
    both.on_measured("encoding", 1, 2, True)
    both.on_evaluation(1, {}, {})
    both.on_round(record(1))
    both.on_end(SUMMARY)
    both.close()
    events = ("on_start", "on_client", "on_measured", "on_evaluation", "on_round", "on_end")
    told = [(event, name) for event in events for name in "ab"]
    assert heard == [*told, ("close", "b"), ("close", "a")]


def test_all_are_closed_even_if_some_cannot_be():
    closed = []

    class Door(Observer):
        def __init__(self, name, stuck):
            self.name, self.stuck = name, stuck

        def close(self):
            closed.append(self.name)
            if self.stuck:
                raise OSError(self.name)

    doors = Observers([Door("a", True), Door("b", False), Door("c", True), Door("d", False)])
    with pytest.raises(OSError, match="a"):
        doors.close()
    assert closed == ["d", "c", "b", "a"]


@pytest.mark.parametrize("done", [0, 1])
def test_no_guess_of_the_time_left_before_the_first_round(info, record, done):
    screen = Screen(Console(file=io.StringIO()))
    screen.on_start(info)
    if done:
        screen.on_round(record(1))
    assert bool(screen._time_left(done)) == bool(done)
