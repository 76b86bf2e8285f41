"""W&B offline, read back from its own file; and all that must not stop or hang a run."""

from __future__ import annotations

import json
import logging
import re
import socket
import struct
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fedgan.settings import Experiment, Wandb
from fedgan.tracking import observers, wandb
from fedgan.tracking.wandb import RUN_ID, WandbTracker


def blobs(path):
    """Whole records of a .wandb file: LevelDB's log format, blocks of 32 KiB, a header of 7."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        if kind == 0:
            at += 32768 - at % 32768
            continue
        if at + 7 + length > len(data):  # W&B's own process has not written its end yet
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield whole
            whole = b""


def records(run_dir, patience=60.0):
    """Records of the only offline run in `run_dir`, when W&B's own process has written the last.

    `finish` may return a moment before that process flushes its file.
    """
    from wandb.proto import wandb_internal_pb2

    deadline = time.monotonic() + patience
    while True:
        (path,) = run_dir.rglob("*.wandb")
        there = [wandb_internal_pb2.Record.FromString(blob) for blob in blobs(path)]
        if any(record.HasField("exit") for record in there):
            return there
        assert time.monotonic() < deadline, f"{len(there)} records, and none is the run's end"
        time.sleep(0.1)


def read(run_dir):
    """Config, history and summary of the only offline run in `run_dir`."""
    config, history, summary = {}, [], {}
    for record in records(run_dir):
        for part in (record.run.config, record.config):
            for item in part.update:
                config[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        if record.HasField("history"):
            items = record.history.item
            history.append(
                {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            )
    return config, history, summary


def play(tracker, info, record, samples=None):
    tracker.on_start(info)
    for round in (1, 2, 3):
        shown = samples if round == 3 else None
        figures, bias = ({"fd_domain": 2.5}, {2: 1.5}) if round == 3 else (None, None)
        tracker.on_round(record(round, shown, figures, critic_bias=bias))
    tracker.on_evaluation(3, {"figures": {"fd_domain": 2.5}}, {})
    tracker.on_end({"figures": {"fd_domain": 2.0}, "generator_sha256": "abc"})
    tracker.close()


@pytest.mark.slow
def test_offline_holds_config_rounds_clients_and_images(info, record, samples):
    play(WandbTracker(Wandb(project="p")), info, record, samples)
    config, history, summary = read(info.run_dir)
    assert config["federation"]["rounds"] == 3, (config, history)
    assert config["seed"] == 1
    rounds = [row for row in history if "g_loss" in row]
    assert [row["round"] for row in rounds] == [1, 2, 3]
    assert all(row["g_loss"] == 2.0 for row in rounds)
    assert [row["weight/client 2"] for row in rounds] == [0.25] * 3
    assert [row.get("critic_bias/client 2") for row in rounds] == [None, None, 1.5]
    assert rounds[2]["fd_domain"] == 2.5
    assert rounds[2]["samples/_type"] == "image-file"
    tables = [key for row in history for key in row if key.endswith("/nrows")]
    assert tables == ["clients/nrows", "client rounds/nrows"]
    (table,) = info.run_dir.rglob("clients*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["client", "malicious", "images", "thin", "thick [sic]"]
    assert content["data"][2] == [2, True, 10, 0, 10]
    (table,) = info.run_dir.rglob("client rounds*.table.json")
    content = json.loads(table.read_text())
    assert content["columns"][-1] == "critic_bias"
    assert [row[-1] for row in content["data"]] == [None] * 8 + [1.5]
    (picture,) = info.run_dir.rglob("samples*.png")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert summary.get("generator_sha256") == "abc"


@pytest.mark.slow
def test_a_later_evaluation_belongs_to_the_same_run(info, record, tmp_path):
    settings = Wandb(project="p")
    play(WandbTracker(settings), info, record)
    first = (info.run_dir / RUN_ID).read_text().strip()
    (before,) = info.run_dir.rglob("*.wandb")
    (look,) = (row for row in read(info.run_dir)[1] if "full/fd_domain" in row)
    assert (look["round"], look["full/fd_domain"]) == (3, 2.5)
    kept = tmp_path / "kept"
    before.parent.rename(kept)
    picture = torch.zeros((1, 4, 6), dtype=torch.uint8)
    told = {"round": 3, "figures": {"acc_real": 0.5}}
    WandbTracker(settings).evaluated(info.run_dir, told, {"closest pairs": picture})
    assert [record.run.run_id for record in records(info.run_dir) if record.HasField("run")] == [
        first
    ]
    assert next(kept.rglob(f"run-{first}.wandb"))
    _, history, summary = read(info.run_dir)
    assert summary["acc_real"] == 0.5
    assert any("closest pairs/_type" in row for row in history)


@pytest.mark.parametrize(
    ("settings", "there"),
    [
        (Wandb(), False),
        (Wandb(project="p", mode="disabled"), False),
        (Wandb(project="p"), True),
    ],
)
def test_it_is_there_only_when_configured(tmp_path, settings, there):
    experiment = Experiment()
    experiment.tracking.wandb = settings
    made = observers(experiment, tmp_path)
    assert any(isinstance(member, WandbTracker) for member in made.members) == there
    made.close()


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def test_online_without_a_key_is_offline_and_says_so(no_account, caplog):
    with caplog.at_level(logging.WARNING, "fedgan"):
        assert WandbTracker(Wandb(project="p", mode="online"))._reachable_mode() == "offline"
    assert "no API key" in caplog.text


def test_online_with_a_host_out_of_reach_is_offline_soon(monkeypatch, caplog):
    with socket.socket() as probe:  # a port that nobody listens on
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{probe.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        started = time.perf_counter()
        with caplog.at_level(logging.WARNING, "fedgan"):
            mode = WandbTracker(Wandb(project="p", mode="online"))._reachable_mode()
    assert mode == "offline"
    assert time.perf_counter() - started < 10
    assert "out of reach" in caplog.text


def test_a_logger_that_fails_is_told_once_and_left_alone(info, record, caplog, monkeypatch):
    tracker = WandbTracker(Wandb(project="p"))
    calls = []

    def fail(*args):
        calls.append(args)
        raise RuntimeError("the moon is full")

    for name in ("_open", "_log_round", "_log_end", "_finish"):
        monkeypatch.setattr(tracker, name, fail)
    with caplog.at_level(logging.WARNING, "fedgan"):
        play(tracker, info, record)
    assert len(calls) == 1
    assert caplog.text.count("the moon is full") == 1


@pytest.mark.parametrize("whole", [True, False])
def test_an_end_that_hangs_is_waited_for_so_long_only(caplog, monkeypatch, whole):
    never = threading.Event()
    tracker = WandbTracker(Wandb(project="p"))
    tracker._logger = SimpleNamespace(experiment=SimpleNamespace(finish=never.wait))
    tracker._whole = whole
    monkeypatch.setattr(wandb, "LONGEST_FINISH" if whole else "SHORT_FINISH", 0.3)
    started = time.perf_counter()
    with caplog.at_level(logging.WARNING, "fedgan"):
        tracker.close()
    assert 0.3 <= time.perf_counter() - started < 10
    assert caplog.text.count("`wandb sync` sends it") == 1
    never.set()


def test_an_end_that_ends_is_waited_for(caplog):
    ended = []
    tracker = WandbTracker(Wandb(project="p"))
    finish = lambda: (time.sleep(0.2), ended.append(True))  # noqa: E731
    tracker._logger = SimpleNamespace(experiment=SimpleNamespace(finish=finish))
    with caplog.at_level(logging.WARNING, "fedgan"):
        tracker.close()
    assert ended == [True]
    assert not caplog.text
    assert 30 <= wandb.LONGEST_FINISH <= 600


def test_an_error_is_told_before_the_other_ranks_stop_waiting_for_it():
    from fedgan import lifeline

    assert lifeline.GRACE + wandb.SHORT_FINISH < lifeline.LAST_WORDS
    template = (Path(__file__).resolve().parents[2] / "slurm" / "train.sbatch").read_text()
    wait = int(re.search(r"--wait=(\d+)", template)[1])
    assert lifeline.LAST_WORDS < wait <= 60


def test_nothing_to_end_before_it_was_opened(caplog):
    WandbTracker(Wandb(project="p")).close()
    assert not caplog.text


@pytest.mark.slow
def test_a_whole_run_with_wandb_that_breaks_in_the_middle(tiny, tmp_path, monkeypatch):
    from fedgan.experiment import run

    logged = WandbTracker._log_round

    def fail(self, record):
        if record.round == 2:
            raise ConnectionError("the cable was cut")
        logged(self, record)

    monkeypatch.setattr(WandbTracker, "_log_round", fail)
    changes = {"tracking.wandb.project": "p", "run_dir": str(tmp_path / "run")}
    summary = run(tiny({**changes, "federation.rounds": 3}))
    assert summary["rounds"] == 3
    assert "the cable was cut" in (tmp_path / "run" / "log.txt").read_text()
    assert (tmp_path / "run" / "wandb").is_dir()
