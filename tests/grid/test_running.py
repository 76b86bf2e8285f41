"""`fedgan grid` as a user types it, with real cells of a second each."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

import fedgan
from fedgan.cli import main
from fedgan.errors import UserError
from fedgan.grid.cells import read_grid
from fedgan.grid.folder import Folder
from fedgan.rundir import held
from fedgan.runs import read_grid_dir

ROOT = Path(__file__).resolve().parents[2]
GRID = Path("grids/mine")


@pytest.fixture(autouse=True)
def child_finds_fedgan(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def states():
    return {cell["name"]: cell["state"] for cell in json.loads((GRID / "grid.json").read_text())}


@pytest.mark.slow
def test_missing_is_trained_finished_is_skipped_and_more_is_added(write_grid, capsys):
    path = write_grid(defenses=None)
    assert main(["grid", str(path), "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "2 cells: 2 missing" in said
    assert said.count("start  ") == 2
    assert "(2 of 2 done)" in said
    assert "\x1b[" not in said
    assert "Defences by their worst case" in said
    assert (GRID / "leaderboard.csv").read_text().count("fd_domain") == 2
    assert "<!doctype html>" in (GRID / "report.html").read_text().lower()
    assert states() == {"none__none__seed-1": "finished", "patch__none__seed-1": "finished"}
    assert "fd_domain" in (GRID / "logs" / "patch__none__seed-1.log").read_text()
    before = (GRID / "cells" / "patch__none__seed-1" / "summary.json").stat().st_mtime_ns

    write_grid(defenses=None, seeds=[1, 2])
    assert main(["grid", "mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert "4 cells: 2 finished, 2 missing" in said
    assert said.count("start  ") == 2
    assert (GRID / "cells" / "patch__none__seed-1" / "summary.json").stat().st_mtime_ns == before

    found = read_grid_dir(GRID)
    assert [run.labels.arm for run in found.runs] == ["clean", "attacked"] * 2
    assert not found.missing
    assert found.runs[3].labels.seed == found.runs[3].settings.seed == 2
    assert main(["grid", "mine.yaml"]) == 0
    assert "start" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_cell_that_fails_takes_nobody_with_it_and_is_tried_again(write_grid, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\n"
        "from fedgan.defenses.fedavg import FedAvg\n"
        "class Fragile(FedAvg):\n"
        "    def __call__(self, *args):\n"
        "        if not Path('mended').exists():\n"
        "            raise RuntimeError('it broke')\n"
        "        return super().__call__(*args)\n"
    )
    path = write_grid(attacks=None, defenses={"fragile": {"defense.class_path": "mine.Fragile"}})
    assert main(["grid", str(path)]) == 1
    said = capsys.readouterr().out
    assert "1 of 2 cells failed" in said
    log = "grids/mine/logs/none__fragile__seed-1.log"
    assert f"{log}: RuntimeError: it broke" in said
    assert states() == {"none__none__seed-1": "finished", "none__fragile__seed-1": "failed"}
    missing = read_grid_dir(GRID).missing
    assert [(cell.name, cell.state) for cell in missing] == [("none__fragile__seed-1", "failed")]

    (tmp_path / "mended").touch()
    assert main(["grid", str(path)]) == 0
    assert set(states().values()) == {"finished"}


@pytest.mark.slow
def test_ctrl_c_stops_the_children_which_save(write_grid):
    path = write_grid(in_base={"federation.rounds": 400}, attacks=None, defenses=None)
    command = [sys.executable, "-m", "fedgan", "grid", str(path), "--jobs=1"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background job ignores Ctrl-C, and so would the grid if this suite is one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        checkpoints = GRID / "cells" / "none__none__seed-1" / "checkpoints"
        end = time.monotonic() + 90
        while not any(checkpoints.glob("round_*")):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "0 of 1 cells finished; `fedgan grid mine.yaml --jobs 1` goes on" in err.decode()
    assert states() == {"none__none__seed-1": "cut off"}
    log = (GRID / "logs" / "none__none__seed-1.log").read_text()
    assert "goes on after round" in log
    saved = max(int(one.name[6:]) for one in checkpoints.iterdir())
    assert 0 < saved < 400
    folder = Folder(read_grid(path))
    assert folder.state(folder.grid.cells[0]) == "cut off"  # no child has outlived it


def prepared(path):
    folder = Folder(read_grid(path))
    folder.prepare(overwrite=False)
    return folder


def test_another_machines_cells_are_left_to_it(write_grid, capsys):
    folder = prepared(write_grid(attacks=None, defenses=None))
    (cell,) = folder.grid.cells
    with held(cell.run_dir):
        assert folder.state(cell) == "running"
        assert folder.claim(cell) is None
        assert main(["grid", "mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert said.count("another process is at work on it") == 2  # skipped, and not finished
    assert "start" not in said
    claim = folder.claim(cell)
    assert folder.state(cell) == "running"
    assert folder.claim(cell) is None
    claim.close()
    assert folder.state(cell) == "missing"
    with folder.log(cell).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_run_that_another_process_has_begun_meanwhile_is_not_replaced(
    tiny, tmp_path, monkeypatch
):
    from fedgan import ranks

    theirs = tmp_path / "run" / "checkpoints" / "round_0001"

    @contextmanager
    def held_after_another(run_dir):
        theirs.mkdir(parents=True)
        (tmp_path / "run" / "config.yaml").touch()
        yield

    monkeypatch.setattr(ranks, "held", held_after_another)
    with pytest.raises(UserError, match="another process is writing to"):
        fedgan.run(tiny({"run_dir": str(tmp_path / "run")}), go_on=True)
    assert theirs.is_dir()


def test_one_that_another_has_finished_meanwhile_counts(write_grid, monkeypatch, capsys):
    prepared(write_grid(attacks=None, defenses=None))

    def claim(self, cell):
        cell.run_dir.mkdir(parents=True)
        (cell.run_dir / "summary.json").write_text("{}")

    monkeypatch.setattr(Folder, "claim", claim)
    assert main(["grid", "mine.yaml"]) == 0
    said = capsys.readouterr().out
    assert "finished  none__none__seed-1  elsewhere  (1 of 1 done)" in said
    assert "not finished" not in said


def test_a_disk_that_is_full_while_a_grid_is_prepared_leaves_it_to_be_gone_on_with(
    write_grid, monkeypatch, capsys
):
    from fedgan.grid import folder as module

    def full(path, text):
        raise UserError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_text", full)
        assert main(["grid", str(write_grid())]) == 2
    assert "No space left" in capsys.readouterr().err
    prepared("mine.yaml")  # and not "something else than a grid"


def test_a_grid_at_work_may_be_looked_at_by_those_who_cannot_write_there(write_grid, monkeypatch):
    folder = prepared(write_grid(attacks=None, defenses=None))
    (cell,) = folder.grid.cells
    claim = folder.claim(cell)
    really = Path.open

    def read_only(self, mode="r", *args, **more):
        if "r" not in mode:
            raise PermissionError(13, "Permission denied")
        return really(self, mode, *args, **more)

    monkeypatch.setattr(Path, "open", read_only)
    assert folder.state(cell) == "running"
    claim.close()
    assert folder.state(cell) == "missing"


def test_a_log_that_cannot_be_written_fails_its_cell_alone(write_grid, monkeypatch, capsys):
    folder = prepared(write_grid(attacks=None))
    first, second = folder.grid.cells
    for cell in (first, second):
        folder.log(cell).mkdir(parents=True)
    assert main(["grid", "mine.yaml"]) == 1
    said = capsys.readouterr().out
    assert f"failed    {first.name}: cannot write grids/mine/logs/{first.name}.log: Is a" in said
    assert "2 of 2 cells failed" in said


def test_a_table_of_contents_that_cannot_be_written_ends_nothing(write_grid, monkeypatch, capsys):
    folder = prepared(write_grid(attacks=None, defenses=None))
    folder.log(folder.grid.cells[0]).mkdir(parents=True)  # fails at once

    def full(self):
        raise UserError("cannot write grid.json: No space left on device")

    monkeypatch.setattr(Folder, "prepare", lambda self, overwrite: None)
    monkeypatch.setattr(Folder, "write", full)
    assert main(["grid", "mine.yaml"]) == 1
    said = capsys.readouterr().out
    assert "note: cannot write grid.json: No space left on device" in said
    assert "1 of 1 cells failed" in said


def begun(folder):
    """As if each cell had been begun."""
    for cell in folder.grid.cells:
        (cell.run_dir / "checkpoints").mkdir(parents=True)
        (cell.run_dir / "config.yaml").write_text(folder.config(cell).read_text())


def test_other_settings_under_the_same_name_are_refused(write_grid, capsys):
    begun(prepared(write_grid()))
    write_grid(set={"federation.rounds": 3})
    assert main(["grid", "mine.yaml"]) == 2
    said = capsys.readouterr().err.strip()
    assert "cell none__none__seed-1: federation.rounds: 2 there, 3 here" in said
    assert "--overwrite" in said
    assert len(said.splitlines()) == 1

    folder = Folder(read_grid("mine.yaml"))
    folder.prepare(overwrite=True)
    assert not any(cell.run_dir.exists() for cell in folder.grid.cells)
    texts = [yaml.safe_load(folder.config(cell).read_text()) for cell in folder.grid.cells]
    assert {text["federation"]["rounds"] for text in texts} == {3}


def test_machine_and_loggers_may_change(write_grid):
    begun(prepared(write_grid()))
    write_grid(set={"cluster.threads": 2, "tracking.wandb.project": "x", "checkpoint.keep": 3})
    folder = Folder(read_grid("mine.yaml"))
    folder.check(overwrite=False)
    assert not any(map(folder.changed, folder.grid.cells))


def test_finished_cells_measured_otherwise_are_told_of(write_grid):
    folder = prepared(write_grid())
    begun(folder)
    (folder.grid.cells[1].run_dir / "summary.json").write_text("{}")
    write_grid(set={"evaluate.samples": 12})
    folder = Folder(read_grid("mine.yaml"))
    for _ in range(2):  # and told of again
        assert "patch__none__seed-1: evaluate.samples: 8 there, 12 here" in folder.stale_measures()
        folder.prepare(overwrite=False)


def test_a_folder_of_other_things_is_left_alone(write_grid, tmp_path, capsys):
    path = write_grid()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    assert main(["grid", str(path), "--grid_dir=precious"]) == 2
    assert "holds something else than a grid" in capsys.readouterr().err
    assert [one.name for one in (tmp_path / "precious").iterdir()] == ["thesis.tex"]


def test_a_grid_is_checked_whole_before_anything_starts(write_grid, tmp_path, capsys):
    path = write_grid(defenses={"krum": {"defense.name": "krum"}})
    assert main(["grid", str(path)]) == 2
    said = capsys.readouterr().err.strip()
    assert "cell none__krum__seed-1: defense: krum needs n >= 2f+3: n is 3, f is 1" in said
    assert not (tmp_path / "grids").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--jobs=0"], "--jobs: 0 is less than 1"),
        (["--gpus=1"], "--gpus: goes with --launcher slurm"),
        (["--launcher=slurm"], "--gpus=N or --procs=N"),
        (["--federation.round=3"], "did you mean 'rounds'"),
        (["--seed=3"], "every cell of a grid has its own"),
        (["--data.path=none.npz"], "none.npz"),
    ],
)
def test_refused_in_one_line(write_grid, tmp_path, capsys, argv, words):
    assert main(["grid", str(write_grid()), *argv]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert len(said.splitlines()) == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["base.yaml", "mine.yaml"]
