"""`train --resume`, the best checkpoint, and going back to an older one."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
import torch
import yaml

from fedgan.checkpoint import Checkpoints, load_server
from fedgan.cli import main
from fedgan.errors import UserError
from fedgan.experiment import resume, run
from fedgan.rundir import held, make_run_dir, read_settings
from fedgan.tracking.console import LogFile


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A finished run of four rounds that looked at each, and its config file."""
    folder = tmp_path_factory.mktemp("whole")
    changes = {"federation.rounds": 4, "evaluate.every": 1, "run_dir": str(folder / "run")}
    (folder / "mine.yaml").write_text(yaml.safe_dump(tiny({**changes, "checkpoint.keep": 9})))
    return run(folder / "mine.yaml"), folder


@pytest.fixture
def copy(whole, tmp_path):
    """The same run in another folder, and its config file there."""
    shutil.copytree(whole[1], tmp_path / "copy")
    text = (whole[1] / "mine.yaml").read_text()
    (tmp_path / "copy" / "mine.yaml").write_text(
        text.replace(str(whole[1]), str(tmp_path / "copy"))
    )
    return tmp_path / "copy"


def sha(run_dir):
    return json.loads((run_dir / "summary.json").read_text())["generator_sha256"]


def rounds(run_dir):
    lines = (run_dir / "metrics.csv").read_text().splitlines()[1:]
    return [int(line.split(",")[0]) for line in lines]


def test_resume_starts_what_is_not_there(copy, whole):
    shutil.rmtree(copy / "run")
    assert main(["train", str(copy / "mine.yaml"), "--resume"]) == 0
    assert sha(copy / "run") == whole[0]["generator_sha256"]


def test_resume_starts_anew_where_nothing_was_saved_and_keeps_slurms_output(copy, whole):
    shutil.rmtree(copy / "run")
    (copy / "run").mkdir()
    (copy / "run" / "slurm-7.out").write_text("before\n")
    assert main(["train", str(copy / "mine.yaml"), "--resume"]) == 0
    assert sha(copy / "run") == whole[0]["generator_sha256"]
    assert (copy / "run" / "slurm-7.out").read_text() == "before\n"


def test_resume_goes_on_from_the_newest(copy, whole):
    for round in (3, 4):
        shutil.rmtree(copy / "run" / "checkpoints" / f"round_000{round}")
    (copy / "run" / "summary.json").unlink()
    assert main(["train", str(copy / "mine.yaml"), "--resume"]) == 0
    assert sha(copy / "run") == whole[0]["generator_sha256"]
    assert rounds(copy / "run") == [1, 2, 3, 4]


def test_resume_refuses_another_experiment(copy, capsys):
    before = sorted(path.name for path in (copy / "run").iterdir())
    words = ["train", str(copy / "mine.yaml"), "--resume", "--training.batch_size=4"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "another training (training.batch_size: 8 there, 4 here)" in said
    assert sorted(path.name for path in (copy / "run").iterdir()) == before


def test_going_back_plays_the_later_rounds_again(copy, whole):
    checkpoints = Checkpoints(copy / "run" / "checkpoints", 9)
    again = resume(copy / "run", checkpoint="round_0002")
    assert again["generator_sha256"] == whole[0]["generator_sha256"]
    assert [path.name for path in checkpoints.all()] == [f"round_000{i}" for i in (1, 2, 3, 4)]
    assert rounds(copy / "run") == [1, 2, 3, 4]


def test_the_best_is_that_of_the_smallest_distance(whole):
    folder = whole[1] / "run"
    header, *lines = (folder / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("fd_domain")
    distances = [float(line.split(",")[column]) for line in lines]
    best, _ = Checkpoints(folder / "checkpoints", 9).find("best")
    expected = 1 + distances.index(min(distances))
    assert best.name == f"round_000{expected}"
    assert load_server(best)["best"]["distance"] == pytest.approx(min(distances))


def test_the_best_stays_when_newer_ones_push_others_out(tiny, tmp_path):
    changes = {"federation.rounds": 5, "evaluate.every": 1, "checkpoint.keep": 1}
    changes |= {"checkpoint.every": 0, "run_dir": str(tmp_path / "run")}
    run(tiny(changes))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", 1)
    best, newest = checkpoints.find("best")[0], checkpoints.find(None)[0]
    assert newest.name == "round_0005"
    assert {path.name for path in checkpoints.all()} == {best.name, newest.name}


def test_an_unknown_checkpoint_is_named(copy):
    with pytest.raises(UserError, match="round_0042: no such folder"):
        resume(copy / "run", checkpoint="round_0042")


def test_another_number_of_threads_is_told(copy, caplog):
    path = copy / "run" / "checkpoints" / "round_0004"
    state = load_server(path)
    state["machine"]["threads"] = 7
    torch.save(state, path / "server.pt")
    resume(copy / "run")
    assert "saved with threads 7, going on with 1" in caplog.text


def test_a_failure_after_going_back_loses_no_row(copy, whole, monkeypatch):
    """Going back drops the later rows, so it drops the later checkpoints too: the next resume would
    take the newest, and rows would be missing for ever."""
    from fedgan.federation import Federation

    def fail(self, round, started):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(Federation, "play_round", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            resume(copy / "run", checkpoint="round_0001")
    assert resume(copy / "run")["generator_sha256"] == whole[0]["generator_sha256"]
    assert rounds(copy / "run") == [1, 2, 3, 4]


def test_a_resume_may_look_with_another_encoder(copy):
    for round in (3, 4):
        shutil.rmtree(copy / "run" / "checkpoints" / f"round_000{round}")
    other = "{name: domain, init_args: {steps: 4}}"
    resume(copy / "run", ["--evaluate.watch_encoder=" + other, "--evaluate.watch_samples=9"])
    assert rounds(copy / "run") == [1, 2, 3, 4]
    best = load_server(copy / "run" / "checkpoints" / "round_0004")["best"]
    assert best["by"].endswith("of 9 images")
    assert best["round"] in (3, 4)


def test_two_processes_do_not_write_to_one_run(copy):
    with held(copy / "run"), pytest.raises(UserError, match="another process is writing to"):
        resume(copy / "run")
    assert rounds(copy / "run") == [1, 2, 3, 4]
    assert [path.name for path in copy.glob(".*")] == []


def test_a_run_that_came_in_between_is_kept(copy):
    settings = read_settings(copy / "run", [])
    with pytest.raises(UserError, match="exists"):
        make_run_dir(copy / "run", settings, 1, overwrite=False)
    assert rounds(copy / "run") == [1, 2, 3, 4]


def test_a_disk_that_fills_up_in_a_round_is_one_line(copy, monkeypatch, capsys):
    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(LogFile, "on_round", full)
    assert main(["train", str(copy / "mine.yaml"), "--overwrite"]) == 2
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
