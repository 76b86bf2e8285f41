"""A logger that breaks, at whichever event, is told of once and dropped; the run goes on."""

from __future__ import annotations

import errno
import logging
import signal

import pytest

from fedgan.errors import Interrupted
from fedgan.settings import Tracking, Wandb
from fedgan.tracking import loggers, observers
from fedgan.tracking.guard import Guarded, Logger
from fedgan.tracking.records import Records

EVENTS = ("on_start", "on_client", "on_measured", "on_evaluation", "on_round", "sync", "on_end")
FULL = OSError(errno.ENOSPC, "No space left on device")


class Frail(Logger):
    """Notes what it hears, and raises at one event."""

    def __init__(self, breaks_at=None, error=FULL):
        self.heard = []

        def hear(event):
            def told(*args):
                self.heard.append(event)
                if event == breaks_at:
                    raise error

            return told

        for event in (*EVENTS, "on_later_evaluation", "close"):
            setattr(self, event, hear(event))


def tell_all(observer, info, record):
    observer.on_start(info)
    for round in (1, 2):
        observer.on_client(round, 0, 30)
        observer.on_measured("looking", 1, 2, True)
        observer.on_evaluation(round, {}, {})
        observer.on_round(record(round))
        observer.sync()
    observer.on_end({})
    observer.close()


@pytest.mark.parametrize("event", [*EVENTS, "close"])
def test_one_warning_and_nothing_more_but_the_end(event, info, record, caplog):
    frail = Frail(event)
    guarded = Guarded("the moon", lambda: frail)
    with caplog.at_level(logging.WARNING, "fedgan"):
        tell_all(guarded, info, record)
    assert [r.getMessage() for r in caplog.records] == [
        "the moon is left out from here on: OSError: [Errno 28] No space left on device"
    ]
    assert frail.heard.count(event) == 1
    assert frail.heard[-1] == "close"
    assert frail.heard[-2:] == [event, "close"] or event == "close"


@pytest.mark.parametrize("event", EVENTS)
def test_a_sound_logger_hears_of_everything(event, info, record, caplog):
    frail = Frail()
    tell_all(Guarded("the moon", lambda: frail), info, record)
    assert event in frail.heard
    assert not caplog.records


def test_what_a_broken_one_raises_at_its_end_is_told_to_nobody(info, record, caplog):
    frail = Frail("on_round")

    def fail():
        raise RuntimeError("still broken")

    frail.close = fail
    with caplog.at_level(logging.WARNING, "fedgan"):
        tell_all(Guarded("the moon", lambda: frail), info, record)
    assert "still broken" not in caplog.text
    assert len(caplog.records) == 1


def test_one_that_cannot_be_made_is_told_once(info, record, caplog):
    def make():
        raise ModuleNotFoundError("not here\nsecond line")

    with caplog.at_level(logging.WARNING, "fedgan"):
        tell_all(Guarded("the moon", make), info, record)
    assert caplog.messages == ["the moon is left out from here on: ModuleNotFoundError: not here"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted(signal.SIGTERM, "stopped")])
def test_a_stop_signal_is_no_failure(stop, info, caplog):
    guarded = Guarded("the moon", lambda: Frail("on_start", stop))
    with pytest.raises(KeyboardInterrupt):
        guarded.on_start(info)
    assert not caplog.records


def test_the_run_directorys_own_tables_are_no_logger(info, record, monkeypatch):
    """A full disk stops the run: without its tables there is no result."""
    made = observers(info.settings, info.run_dir)

    def full(self, record):
        raise FULL

    monkeypatch.setattr(Records, "on_round", full)
    made.on_start(info)
    with pytest.raises(OSError, match="No space left"):
        made.on_round(record())
    made.close()


@pytest.mark.parametrize(
    ("tracking", "names"),
    [
        (Tracking(), []),
        (Tracking(wandb=Wandb(project="p", mode="disabled")), []),
        (Tracking(wandb=Wandb(project="p")), ["W&B"]),
        (Tracking(wandb=Wandb(project="p"), tensorboard=True), ["W&B", "TensorBoard"]),
    ],
)
def test_the_switches(tracking, names, caplog):
    assert [logger.name for logger in loggers(tracking)] == names


@pytest.mark.slow
def test_a_whole_run_whose_loggers_break_in_the_middle(tiny, tmp_path, monkeypatch):
    from fedgan import tracking
    from fedgan.experiment import run

    frail = {"W&B": Frail("on_round"), "TensorBoard": Frail("on_end")}
    made = [Guarded(name, lambda logger=logger: logger) for name, logger in frail.items()]
    monkeypatch.setattr(tracking, "loggers", lambda settings: made)
    summary = run(tiny({"run_dir": str(tmp_path / "run"), "federation.rounds": 3}))
    assert summary["rounds"] == 3
    text = (tmp_path / "run" / "log.txt").read_text()
    assert [text.count(f"{name} is left out from here on") for name in frail] == [1, 1]
    assert frail["W&B"].heard.count("on_round") == 1
    assert frail["TensorBoard"].heard[-2:] == ["on_end", "close"]
