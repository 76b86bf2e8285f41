"""Grids as job arrays in a real SLURM: a task a cell."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from fedgan.cli import main

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]
GRID = Path("grids/mine")
PATCH = {"attack.name": "patch", "attack.init_args": {"size": 2}}


@pytest.fixture
def write_grid(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(rounds=2, **changes):
        Path("base.yaml").write_text(yaml.safe_dump(tiny({"federation.rounds": rounds})))
        grid = {"base": "base.yaml", "attacks": {"patch": PATCH}, **changes}
        Path("mine.yaml").write_text(yaml.safe_dump(grid))

    return write


@pytest.fixture
def submit(slurm, capsys):
    def call(*argv):
        assert main(["grid", "mine.yaml", "--launcher=slurm", "--procs=1", *argv]) == 0
        return re.search(r"scancel (\d+)", capsys.readouterr().out)[1]

    return call


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The stand-in as Python, whose rounds are 0.1 s of sleep."""
    python = tmp_path / "python"
    shutil.copy(Path(__file__).with_name("stand_in.py"), python)
    python.write_text(f"#!{sys.executable} -S\n{python.read_text()}")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("STAND_IN", "")


def log(name):
    path = GRID / "logs" / f"{name}.log"
    return path.read_text() if path.exists() else ""


def state(slurm, job):
    """The state of each task, by its number."""
    said = slurm.call("squeue", "--noheader", "--array", "--states=all", "-o", "%K %T", "-j", job)
    return dict(line.split() for line in said.splitlines())


def both(slurm, job, wanted, seconds=120):
    slurm.until(
        lambda: set(state(slurm, job).values()) == {wanted},
        lambda: f"{state(slurm, job)} {log('none__none__seed-1')}",
        seconds,
    )


@pytest.mark.slow
def test_each_cell_is_a_task_and_local_goes_on_with_the_same_directory(
    slurm, write_grid, submit, capsys
):
    write_grid()
    job = submit()
    both(slurm, job, "COMPLETED")
    for name in ("none__none__seed-1", "patch__none__seed-1"):
        summary = json.loads((GRID / "cells" / name / "summary.json").read_text())
        assert summary["rounds"] == 2
        assert "round 2/2" in log(name)
    assert f"job {job}_0: is cell none__none" in (GRID / "logs" / f"slurm-{job}.out").read_text()
    assert main(["grid", "mine.yaml", "--jobs=2"]) == 0
    assert "2 cells: 2 finished" in capsys.readouterr().out

    write_grid(seeds=[1, 2])
    assert main(["grid", "mine.yaml", "--jobs=2"]) == 0
    assert "4 of 4 done" in capsys.readouterr().out
    write_grid(seeds=[1, 2, 3])
    assert len(state(slurm, submit("--jobs=1"))) == 2  # what is missing, and no more


def at_work(name):
    return "from round" in log(name)


def test_tasks_stop_and_come_back_each_by_itself(slurm, write_grid, submit, stand_in):
    write_grid(rounds=600)
    job = submit()
    names = ("none__none__seed-1", "patch__none__seed-1")
    slurm.until(lambda: all(map(at_work, names)), lambda: "\n".join(map(log, names)), 60)
    slurm.call("scancel", "--batch", "--signal=USR1", f"{job}_1")
    slurm.until(lambda: "requeued" in log(names[1]), lambda: log(names[1]))
    slurm.until(lambda: state(slurm, job)["1"] == "PENDING", lambda: state(slurm, job))
    assert state(slurm, job)["0"] == "RUNNING"
    assert "requeued" not in log(names[0])
    assert len(list((GRID / "cells" / names[1] / "checkpoints").iterdir())) == 1
    # and the task whose number is the array's own, which SLURM may take for all of them
    slurm.call("scancel", "--batch", "--signal=USR1", f"{job}_0")
    slurm.until(lambda: "requeued" in log(names[0]), lambda: log(names[0]))


def test_so_many_at_a_time_and_cancelled_they_stay_away(slurm, write_grid, submit, stand_in):
    write_grid(rounds=600)
    job = submit("--jobs=1")
    slurm.until(lambda: at_work("none__none__seed-1"), lambda: log("none__none__seed-1"), 60)
    assert sorted(state(slurm, job).values()) == ["PENDING", "RUNNING"]
    slurm.call("scancel", job)
    both(slurm, job, "CANCELLED")
    assert "requeued" not in log("none__none__seed-1")


def test_a_second_array_waits_and_leaves_what_is_finished(slurm, write_grid, submit, stand_in):
    write_grid(rounds=600)
    first = submit()
    slurm.until(lambda: at_work("none__none__seed-1"), lambda: log("none__none__seed-1"), 60)
    slurm.until(lambda: at_work("patch__none__seed-1"), lambda: log("patch__none__seed-1"), 60)
    for path in GRID.glob("cells/*/config.yaml"):
        path.unlink()  # the stand-in's are empty
    write_grid(rounds=600, seeds=[1, 2])
    second = submit()
    assert list(state(slurm, second).values()) == ["PENDING"] * 2  # those at work are not in it
    done = GRID / "cells" / "none__none__seed-2" / "summary.json"
    done.parent.mkdir()
    done.touch()
    slurm.call("scancel", first)
    slurm.until(lambda: at_work("patch__none__seed-2"), lambda: state(slurm, second), 60)
    assert "this cell is finished" in log("none__none__seed-2")
