"""The saved W&B view: as far as it goes without an account, which is its spec."""

from __future__ import annotations

import json
import sys

import pytest

from fedgan import cli, config
from fedgan.errors import UserError
from fedgan.settings import Experiment
from fedgan.tracking import workspace
from fedgan.tracking.wandb_session import RUN_ID


def make_run(folder, **changes):
    folder.mkdir(parents=True)
    settings = Experiment()
    settings.federation.clients = changes.get("clients", 3)
    settings.tracking.wandb.project, settings.tracking.wandb.entity = "p", "e"
    settings.tracking.wandb.group = changes.get("group")
    settings.evaluate.encoder = changes.get("encoder", "inception")
    (folder / "config.yaml").write_text(config.dump(settings))
    return folder


def built(folder, *args):
    """What the command writes for a folder."""
    pytest.importorskip("wandb_workspaces")
    out = folder / "spec.json"
    assert cli.main(["workspace", str(folder), f"--out={out}", *args]) == 0
    return json.loads(out.read_text())


def sections(spec):
    found = spec["spec"]["section"]["panelBankConfig"]["sections"]
    return {one["name"]: [(p["viewType"], p["config"]) for p in one["panels"]] for one in found}


def runset(spec):
    (found,) = spec["spec"]["section"]["runSets"]
    return found


def test_of_a_run(tmp_path):
    run = make_run(tmp_path / "one")
    (run / RUN_ID).write_text("abcd1234\n")
    spec = built(run)
    assert (spec["entity"], spec["project"], spec["displayName"]) == ("e", "p", "fedgan: one")
    (shown,) = runset(spec)["filters"]["filters"]
    assert (shown["key"]["name"], shown["op"], shown["value"]) == ("name", "=", "abcd1234")
    assert runset(spec)["grouping"] == []
    assert spec["spec"]["section"]["settings"]["xAxis"] == "round"
    found = sections(spec)
    assert [config["metrics"] for _, config in found["figures"]] == [["fd_domain"], ["presence"]]
    assert found["samples"] == [
        (
            "Media Browser",
            {
                "chartTitle": "samples",
                "mediaKeys": ["samples"],
                "mode": "grid",
                "gridSettings": {"xAxis": "step", "yAxis": "run"},
            },
        )
    ]
    g_loss = found["clients"][0][1]
    assert g_loss["metrics"] == [f"g_loss/client {client}" for client in range(3)]
    assert g_loss["xAxis"] == "round"
    weights = next(c for _, c in found["clients"] if c.get("plotType") == "stacked-area")
    assert weights["metrics"] == [f"weight/client {client}" for client in range(3)]


def test_of_a_run_that_wandb_has_not_seen(tmp_path):
    (shown,) = runset(built(make_run(tmp_path / "new")))["filters"]["filters"]
    assert (shown["key"]["name"], shown["value"]) == ("displayName", "new")


def test_of_a_grid(tmp_path):
    grid = tmp_path / "smoke"
    make_run(grid / "cells" / "a", clients=2)
    make_run(grid / "cells" / "b", clients=70, encoder=["domain", "inception"])
    spec = built(grid, "--project=other", "--entity=team", "--name=mine")
    assert (spec["entity"], spec["project"], spec["displayName"]) == ("team", "other", "mine")
    (shown,) = runset(spec)["filters"]["filters"]
    assert (shown["key"]["name"], shown["value"]) == ("group", "smoke")
    names = [key["name"] for key in runset(spec)["grouping"]]
    assert names == ["labels.value.attack", "labels.value.defense"]
    assert list(runset(spec)["runFeed"]["columnPinned"]) == [
        "run:displayName",
        "summary:final/fid",
        "summary:final/fd_domain",
        "summary:final/presence",
    ]
    figures = sections(spec)["figures"]
    distance = figures[0][1]
    assert (distance["metrics"], distance["groupBy"]) == (["fd_domain"], "labels.value.defense")
    assert (distance["groupAgg"], distance["groupArea"]) == ("mean", "stddev")
    bars = [config["metrics"] for kind, config in figures if kind == "Bar Chart"]
    assert bars == [["final/fid"], ["final/fd_domain"], ["final/presence"]]
    assert "leaderboard" in json.dumps(figures[-1][1])
    assert len(sections(spec)["clients"][0][1]["metrics"]) == workspace.MOST_CLIENTS


def test_a_grids_own_group_is_shown(tmp_path):
    make_run(tmp_path / "grid" / "cells" / "a", group="mine")
    (shown,) = runset(built(tmp_path / "grid"))["filters"]["filters"]
    assert shown["value"] == "mine"


def test_without_an_account_there_is_one_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setattr(workspace, "has_key", lambda: False)
    assert cli.main(["workspace", str(make_run(tmp_path / "run"))]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "needs a W&B account" in told[0]
    assert "--out" in told[0]


def test_what_wandb_does_not_take_is_one_line(monkeypatch):
    class View:
        def save(self):
            raise ValueError("no such entity\nand more")

    monkeypatch.setattr(workspace, "has_key", lambda: True)
    with pytest.raises(UserError, match=r"^workspace: not saved: ValueError: no such entity$"):
        workspace.save(View())


def test_without_the_package_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert cli.main(["workspace", str(make_run(tmp_path / "run"))]) == 2
    assert "pip install 'fedgan[workspaces]'" in capsys.readouterr().err


def test_what_is_no_run(tmp_path, capsys):
    assert cli.main(["workspace", str(tmp_path)]) == 2
    assert "neither a run nor a grid" in capsys.readouterr().err
    run = make_run(tmp_path / "run")
    text = (run / "config.yaml").read_text().replace("entity: e", "entity: null")
    (run / "config.yaml").write_text(text)
    assert cli.main(["workspace", str(run)]) == 2
    assert "which --entity?" in capsys.readouterr().err
