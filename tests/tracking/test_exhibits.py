"""What a defence shows of those it accuses, in the run directory and on the screen."""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fedgan.cli import main
from fedgan.defenses.base import Exhibit
from fedgan.settings import Wandb
from fedgan.tracking.wandb import WandbTracker

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
    # The report has the last one of each client, in itself.
    page = report_of(accusing)
    last = {row["client"]: row for row in rows}
    shown = re.findall(r'exhibit"><figcaption>(.*?)</figcaption><img src="(.*?)"', page)
    assert [html.unescape(words) for words, _ in shown] == [
        last[client]["words"] for client in sorted(last, key=int)
    ]
    for (_, uri), client in zip(shown, sorted(last, key=int), strict=True):
        inside = Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1])))
        kept = Image.open(accusing / "run" / last[client]["picture"])
        assert np.array_equal(np.asarray(inside.convert("RGB")), np.asarray(kept.convert("RGB")))


def report_of(folder):
    assert main(["report", "run"]) == 0
    return (folder / "run" / "report.html").read_text()


@pytest.mark.parametrize("cleanup", ["rollback", "remove", "auto", "none"])
def test_what_was_undone_is_told(cleanup, accusing, capsys):
    assert main([*RUN, f"--defense.init_args.cleanup={cleanup}"]) == 0
    said = capsys.readouterr().out
    rolled_back, removed = cleanup == "rollback", cleanup in ("remove", "auto")
    with (accusing / "run" / "metrics.csv").open() as table:
        undone = [int(row["undone"]) for row in csv.DictReader(table)]
    assert undone == [0, 0, 0, 4 if rolled_back else 0]  # excluded in the fourth
    assert ("back to the model before round 1: 4 rounds are undone" in said) == rolled_back
    assert ("taken off the model: what the excluded put in" in said) == removed
    assert (
        "put back the global model: after round 4 to the one before round 1." in report_of(accusing)
    ) == rolled_back


def test_a_run_without_any_has_neither_table_nor_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*RUN, "--federation.rounds=2"]) == 0
    assert not list((tmp_path / "run").glob("exhibits*"))


@pytest.mark.slow
def test_wandb_has_them_under_their_client_with_their_words(info, record, offline):
    picture = torch.arange(48, dtype=torch.uint8).view(1, 6, 8)
    tracker = WandbTracker(Wandb(project="p"))
    tracker.on_start(info)
    for round in (1, 2):
        one = record(round)
        if round == 2:
            accused = (Exhibit(2, "client 2: a patch, since round 1", picture),)
            one = replace(one, verdict=replace(one.verdict, exhibits=accused))
        tracker.on_round(one)
    tracker.close()
    (found,) = offline(info.run_dir)
    first, second = found.rounds()
    assert not [key for key in first if key.startswith("exhibits")]
    assert second["exhibits/client 2/caption"] == "client 2: a patch, since round 1"
    (file,) = info.run_dir.rglob(second["exhibits/client 2/path"].removeprefix("media/"))
    assert np.array_equal(np.asarray(Image.open(file).convert("L")), picture[0].numpy())
