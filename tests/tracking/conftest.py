"""A made-up run for the trackers, of three clients, one of them malicious; and a reader of what W&B
writes offline."""

from __future__ import annotations

import json
import struct
import time

import pytest
import torch

from fedgan.defenses.base import Verdict
from fedgan.reports import Report
from fedgan.settings import Experiment
from fedgan.tracking.base import RoundRecord, RunInfo


@pytest.fixture
def info(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    settings = Experiment()
    settings.federation.rounds = 3
    return RunInfo(
        run_dir=run_dir,
        settings=settings,
        n_images=(30, 20, 10),
        malicious=frozenset({2}),
        counts=[[10, 20], [10, 10], [0, 10]],
        classes=("thin", "thick [sic]"),
        images_in_round=60,
    )


@pytest.fixture
def record():
    """One round by its number; client 1 is left out, client 2 flagged."""

    def make(round=1, samples=None, figures=None, acted=True, critic_bias=None):
        nan = float("nan")
        reports = [
            Report(0, round, 30, 0.5, 1.0, 0.6, 1.1),
            Report(1, round, 20, nan, 2.0, 0.7, 2.1, "non-finite loss"),
            Report(2, round, 10, 0.9, 3.0, 0.8, 3.1),
        ]
        weights = torch.tensor([0.75, 0.25], dtype=torch.float64)
        scores = torch.tensor([0.4, 0.6], dtype=torch.float64)
        verdict = Verdict(weights, scores, torch.tensor([False, True]), acted=acted)
        return RoundRecord(
            round=round,
            reports=reports,
            verdict=verdict,
            attackers=frozenset({2}),
            figures=figures or {},
            fair_weights={0: 0.7, 2: 0.3},
            critic_bias=critic_bias or {},
            seconds=1.25,
            images_per_second=48.0,
            samples=samples,
        )

    return make


@pytest.fixture
def samples():
    rng = torch.Generator().manual_seed(0)
    return torch.randint(256, (2, 3, 1, 16, 16), generator=rng, dtype=torch.uint8)


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


def whole_records(path, patience=60.0):
    """Records of an offline file, when W&B's own process has written the last.

    `finish` may return a moment before that process flushes its file.
    """
    from wandb.proto import wandb_internal_pb2

    deadline = time.monotonic() + patience
    while True:
        there = [wandb_internal_pb2.Record.FromString(blob) for blob in blobs(path)]
        if any(record.HasField("exit") for record in there):
            return there
        assert time.monotonic() < deadline, f"{len(there)} records, and none is the run's end"
        time.sleep(0.1)


class Offline:
    """An offline file: the run, its config, a mapping a row of the history, the last summary, how
    metrics are defined, and artifacts by name."""

    def __init__(self, path):
        self.config, self.history, self.summary, self.metrics, self.artifacts = {}, [], {}, {}, {}
        for record in whole_records(path):
            for part in (record.run.config, record.config):
                self.config |= self._items(part.update)
            self.summary |= self._items(record.summary.update)
            if record.HasField("run"):
                self.run = record.run
            if record.HasField("history"):
                self.history.append(self._items(record.history.item))
            if record.HasField("metric"):
                self.metrics[record.metric.name or record.metric.glob_name] = record.metric
            if record.HasField("artifact"):
                self.artifacts[record.artifact.name] = record.artifact

    @staticmethod
    def _items(items):
        return {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}

    def rounds(self):
        return [row for row in self.history if "g_loss" in row]


@pytest.fixture
def offline():
    """Every offline file below a folder, the first first."""
    return lambda folder: [Offline(path) for path in sorted(folder.glob("wandb/offline*/*.wandb"))]
