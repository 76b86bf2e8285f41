"""All of W&B that must not stop or hang a run."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedgan.settings import Wandb
from fedgan.tracking import wandb_session
from fedgan.tracking.wandb import WandbTracker
from fedgan.tracking.wandb_session import LAST_STEP, Session, has_key, reachable_mode

ONLINE = Wandb(project="p", mode="online")


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def test_online_without_a_key_is_offline_and_says_so(no_account, caplog):
    assert not has_key()
    with caplog.at_level(logging.WARNING, "fedgan"):
        assert reachable_mode(ONLINE) == "offline"
    assert "no API key" in caplog.text


def test_online_with_a_host_out_of_reach_is_offline_soon(monkeypatch, caplog):
    monkeypatch.setattr(wandb_session, "has_key", lambda: True)
    with socket.socket() as probe:  # a port that nobody listens on
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{probe.getsockname()[1]}")
        started = time.perf_counter()
        with caplog.at_level(logging.WARNING, "fedgan"):
            mode = reachable_mode(ONLINE)
    assert mode == "offline"
    assert time.perf_counter() - started < 10
    assert "out of reach" in caplog.text


def test_online_with_a_host_that_answers_is_online(monkeypatch):
    monkeypatch.setattr(wandb_session, "has_key", lambda: True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert reachable_mode(ONLINE) == "online"


def test_a_server_that_does_not_take_the_run_leaves_it_offline(monkeypatch, tmp_path, caplog):
    """A wrong key, or a gateway that takes every call: the rows are kept, to be sent later."""
    import wandb

    tried = []

    def opened(self, mode):
        tried.append(mode)
        if mode == "online":
            raise ConnectionError("401\nand more")
        self.run = SimpleNamespace(step=0)

    monkeypatch.setattr(wandb_session, "reachable_mode", lambda settings: "online")
    monkeypatch.setattr(wandb, "teardown", lambda: tried.append("let go"))
    monkeypatch.setattr(Session, "_open", opened)
    with caplog.at_level(logging.WARNING, "fedgan"):
        assert Session(ONLINE, tmp_path, name="x").step == -1
    assert tried == ["online", "let go", "offline"]
    assert caplog.messages == ["W&B: not online: 401; logging offline instead"]


@pytest.fixture
def unopened(tmp_path):
    """A session whose run ends as a call does."""

    def make(finish):
        session = Session.__new__(Session)
        session.run = SimpleNamespace(finish=finish)
        session.step, session._last_step = 2, tmp_path / LAST_STEP
        session._unsure, session._settles = deque(), 0.0
        return session

    return make


@pytest.mark.parametrize("whole", [True, False])
def test_an_end_that_hangs_is_waited_for_so_long_only(caplog, monkeypatch, whole, unopened):
    never = threading.Event()
    tracker = WandbTracker(Wandb(project="p"))
    tracker._session, tracker._whole = unopened(never.wait), whole
    name = "LONGEST_FINISH" if whole else "SHORT_FINISH"
    monkeypatch.setattr(wandb_session, name, 0.3)
    started = time.perf_counter()
    with caplog.at_level(logging.WARNING, "fedgan"):
        tracker.close()
    assert 0.3 <= time.perf_counter() - started < 10
    assert caplog.text.count("`wandb sync` sends it") == 1
    never.set()


def test_an_end_that_ends_is_waited_for(caplog, unopened):
    ended = []
    unopened(lambda: (time.sleep(0.2), ended.append(True))).finish(30)
    assert ended == [True]
    assert not caplog.text
    assert 30 <= wandb_session.LONGEST_FINISH <= 600


def test_an_end_that_fails_is_told_to_the_guard(unopened):
    def fail():
        raise ConnectionError("the cable was cut")

    with pytest.raises(ConnectionError, match="cable"):
        unopened(fail).finish(30)


def test_a_step_is_sent_once_only(tmp_path, unopened):
    session, sent = unopened(lambda: None), []
    session.run.log = lambda values, step, commit: sent.append((step, values, commit))
    session.log({"a": 1}, step=2)
    session.log({"a": 2}, step=3)
    session.log({"a": 3})
    assert sent == [(3, {"a": 2}, True), (4, {"a": 3}, True)]
    # Until it has ended, the last row may be lost.
    assert (tmp_path / LAST_STEP).read_text() == "3\n"
    session.finish(30)
    assert (tmp_path / LAST_STEP).read_text() == "4\n"


def test_a_row_is_sure_only_when_it_must_be_on_the_disk(tmp_path, unopened):
    session = unopened(lambda: None)
    session._settles, session.run.log = 0.2, lambda values, step, commit: None
    session.log({"a": 1})
    session.log({"a": 2})
    assert not (tmp_path / LAST_STEP).exists()
    time.sleep(0.25)
    session.log({"a": 3})
    assert (tmp_path / LAST_STEP).read_text() == "4\n"


def test_wandb_is_told_to_write_often():
    import wandb

    ((name, seconds),) = wandb_session._flushed().items() or [("", 0)]
    settings = wandb.Settings(**{name: seconds})
    assert 0 < getattr(settings, name) < wandb_session.SURE_AFTER


def test_an_error_is_told_before_the_other_ranks_stop_waiting_for_it():
    from fedgan import lifeline

    assert lifeline.GRACE + wandb_session.SHORT_FINISH < lifeline.LAST_WORDS
    template = (Path(__file__).resolve().parents[2] / "slurm" / "train.sbatch").read_text()
    wait = int(re.search(r"--wait=(\d+)", template)[1])
    assert lifeline.LAST_WORDS < wait <= 60


def test_nothing_to_end_before_it_was_opened(caplog):
    WandbTracker(Wandb(project="p")).close()
    assert not caplog.text
