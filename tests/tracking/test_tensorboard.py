"""Event files, read back by TensorBoard's own reader: no step twice, whatever happens."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from fedgan.settings import Tracking
from fedgan.tracking import loggers
from fedgan.tracking.tensorboard import TensorBoardTracker

LABELS = {"data": "d", "attack": "patch", "defense": "krum", "seed": 3, "arm": "defended"}
PICTURE = torch.zeros((3, 4, 6), dtype=torch.uint8)


@pytest.fixture
def events():
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(folder):
        found = accumulator.EventAccumulator(str(folder), {"images": 0, "scalars": 0})
        return found.Reload()

    return read


def play(info, record, samples, rounds, end=True):
    tracker = TensorBoardTracker()
    tracker.on_start(replace(info, labels=LABELS, first_round=rounds[0] if rounds else 4))
    for round in rounds:
        tracker.on_evaluation(round, {"figures": {"kid": 1.0}}, {"pairs": PICTURE})
        tracker.on_round(record(round, samples, {"fd_domain": 1.0 * round}))
    if end:
        figures = {"fd_domain": 2.0, "odd": float("nan")}
        tracker.on_end({"figures": figures, "rounds": 3})
    tracker.close()


def steps(found, tag):
    return [event.step for event in found.Scalars(tag)]


def test_every_round_is_there(info, record, samples, events):
    play(info, record, samples, (1, 2, 3))
    found = events(info.run_dir / "tensorboard")
    tags = found.Tags()
    for tag in ("fd_domain", "weight/client 2", "g_loss/client 1", "detection/benign_flagged"):
        assert steps(found, tag) == [1, 2, 3], tag
    assert [event.value for event in found.Scalars("fd_domain")] == [1.0, 2.0, 3.0]
    # Client 1's discriminator loss is no number.
    assert "d_loss/client 1" not in tags["scalars"]
    assert "d_loss/client 0" in tags["scalars"]
    assert steps(found, "full/kid") == [1, 2, 3]
    assert [event.step for event in found.Images("samples")] == [1, 2, 3]
    assert [event.step for event in found.Images("pairs")] == [1, 2, 3]
    assert {"config/text_summary", "custom_scalars__config__"} <= set(tags["tensors"])


def test_a_resumed_run_has_no_step_twice(info, record, samples, events):
    play(info, record, samples, (1, 2, 3))
    play(info, record, samples, (2, 3))
    play(info, record, samples, ())  # only the end was left
    found = events(info.run_dir / "tensorboard")
    assert steps(found, "fd_domain") == steps(found, "g_loss/client 0") == [1, 2, 3]
    assert [event.step for event in found.Images("samples")] == [1, 2, 3]
    final = events(info.run_dir / "tensorboard" / "final")
    assert steps(final, "final/fd_domain") == [3]
    assert "final/odd" not in final.Tags()["scalars"]


def test_final_figures_stand_beside_the_runs_labels(info, record, samples, events):
    play(info, record, samples, (1,))
    plugin = events(info.run_dir / "tensorboard" / "final").SummaryMetadata(
        "_hparams_/session_start_info"
    )
    assert b"krum" in plugin.plugin_data.content
    assert b"patch" in plugin.plugin_data.content


def test_evaluated_twice_is_told_once(info, record, samples, events):
    play(info, record, samples, (1, 2, 3))
    for value in (0.25, 0.5):
        tracker = TensorBoardTracker()
        told = {"round": 2, "figures": {"acc": value}}
        tracker.on_later_evaluation(info.run_dir, LABELS, told, {"pairs": PICTURE})
        tracker.close()
    found = events(info.run_dir / "tensorboard" / "evaluated")
    assert [(e.step, e.value) for e in found.Scalars("evaluated/acc")] == [(2, 0.5)]
    assert [e.step for e in found.Images("pairs")] == [2]


def test_where_it_is_missing_there_is_one_line(info, record, caplog, monkeypatch):
    from lightning.fabric.loggers import tensorboard

    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(tensorboard, name, False)
    with caplog.at_level(logging.WARNING, "fedgan"):
        (logger,) = loggers(Tracking(tensorboard=True))
        logger.on_start(info)
        logger.on_round(record())
        logger.close()
    assert len(caplog.records) == 1
    assert "pip install 'fedgan[tensorboard]'" in caplog.text
    assert not (info.run_dir / "tensorboard").exists()
