"""What a defence shows of those it accuses, in the run directory and on the screen."""

from __future__ import annotations

import csv

import pytest

from fedgan.cli import main

RUN = [
    "train",
    "smoke.yaml",
    "--run_dir=run",
    "--federation.rounds=4",
    "--federation.local_steps=1",
    "--data.init_args.train=200",
    "--evaluate.every=0",
    "--evaluate.measures=[fidelity]",
    "--defense.name=audit",
    "--attack.update=sign-flip",
    "--cluster.threads=1",
]


@pytest.fixture
def accusing(monkeypatch, tmp_path):
    """Whoever has any score at all is alarming."""
    monkeypatch.setattr("fedgan.defenses.audit.p_values", lambda scores, tests: -scores)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_run_directory_shows_each_fall_in_standing(accusing, capsys):
    from PIL import Image

    assert main(RUN) == 0
    said = capsys.readouterr().out
    rows = list(csv.DictReader((accusing / "run" / "exhibits.csv").open()))
    assert rows
    for row in rows:
        picture = Image.open(accusing / "run" / row["picture"])
        assert picture.width > picture.height > 100
        assert row["words"].startswith(f"client {row['client']}: ")
        assert row["words"] in said
    assert {row["round"] for row in rows} <= {"3", "4"}


def test_a_run_without_any_has_neither_table_nor_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "--federation.rounds=2"]) == 0
    assert not list((tmp_path / "run").glob("exhibits*"))
