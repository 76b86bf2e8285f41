"""The leaderboard on W&B, read back from its offline files."""

from __future__ import annotations

import json
import logging

import pytest

from fedgan.settings import Wandb
from fedgan.tracking.leaderboard import log_leaderboard, table

ROWS = [{"defence": "krum", "fd": 3.5}, {"defence": "none", "fd": float("inf"), "seeds": 3}]


@pytest.mark.slow
def test_table_and_artifact_of_one_run_each_time(tmp_path, offline):
    file = tmp_path / "leaderboard.csv"
    file.write_text("defence,fd\nkrum,3.5\n")
    settings = Wandb(project="p", group="smoke")
    assert log_leaderboard(ROWS, [file], settings)
    assert log_leaderboard(ROWS[:1], [file], settings)
    first, second = offline(tmp_path)
    assert first.run.run_id == second.run.run_id
    assert (first.run.job_type, first.run.run_group) == ("leaderboard", "smoke")
    assert [row["_step"] for found in (first, second) for row in found.history] == [0, 1]
    for found in (first, second):
        artifact = found.artifacts[f"leaderboard-{found.run.run_id}"]
        assert artifact.type == "leaderboard"
        assert [item.path for item in artifact.manifest.contents] == ["leaderboard.csv"]
        assert found.history[0]["leaderboard/_type"] == "table-file"
    paths = sorted(tmp_path.rglob("leaderboard_*.table.json"), key=lambda p: p.stat().st_mtime_ns)
    content = json.loads(paths[0].read_text())
    assert content["columns"] == ["defence", "fd", "seeds"]
    assert content["data"] == [["krum", 3.5, None], ["none", None, 3]]


@pytest.mark.parametrize("settings", [Wandb(), Wandb(project="p", mode="disabled")])
def test_nothing_is_done_where_it_is_not_wanted(tmp_path, settings):
    assert not log_leaderboard(ROWS, [], settings, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_failure_is_one_warning(tmp_path, caplog):
    missing = [tmp_path / "missing.csv"]
    with caplog.at_level(logging.WARNING, "fedgan"):
        assert not log_leaderboard(ROWS, missing, Wandb(project="p"))
    assert len(caplog.records) == 1
    assert "missing.csv" in caplog.text
    assert not (tmp_path / "wandb").exists()


def test_a_column_of_numbers_and_words_is_words():
    columns, cells = table([{"a": 1, "b": True}, {"a": "-", "b": None}, {"c": 2}])
    assert columns == ["a", "b", "c"]
    assert cells == [["1", True, None], ["-", None, None], [None, None, 2.0]]
