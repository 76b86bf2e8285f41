"""Run directories that are refused, replaced with --overwrite, or cannot be written."""

from __future__ import annotations

import subprocess

import pytest

from fedgan.cli import main


def test_an_existing_run_directory_is_not_touched(write, refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    refused(r"run_dir: .*run exists; --overwrite", "train", write())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def fill(folder):
    """Makes a folder look like a run of fedgan with a thesis in it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 1")
    (folder / "checkpoints").mkdir()
    (folder / "thesis.txt").write_text("years of work")
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"federation.rounds": 0}, "rounds"),
        ({"data.path": "nowhere.npz"}, "nowhere"),
        ({"attack.name": "patch", "attack.poison_rate": 0.03}, "poison_rate"),
    ],
)
def test_overwrite_with_a_bad_config_keeps_the_old_run(
    write, refused, tree, tmp_path, changes, words
):
    fill(tmp_path / "run")
    path = write(changes)
    before = tree(tmp_path)
    refused(words, "train", path, "--overwrite")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("there", ["a run", "an empty folder", "nothing"])
def test_overwrite(write, tmp_path, there):
    if there == "a run":
        fill(tmp_path / "run")
    elif there == "an empty folder":
        (tmp_path / "run").mkdir()
    assert main(["train", write({"federation.rounds": 1}), "--overwrite"]) == 0
    assert (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "thesis.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml", "run"}


def a_folder(at):
    at.mkdir()
    (at / "thesis.txt").write_text("years of work")


def another_project(at):
    a_folder(at)
    (at / "config.yaml").write_text("site: mine")


def a_folder_of_runs(at):
    fill(at / "one")


def a_file(at):
    at.write_text("years of work")


def a_link_to_a_run(at):
    at.symlink_to(fill(at.with_name("elsewhere")))


def a_link_to_an_empty_folder(at):
    at.with_name("elsewhere").mkdir()
    at.symlink_to(at.with_name("elsewhere"))


def a_link_to_nothing(at):
    at.symlink_to(at.with_name("elsewhere"))


NO_RUNS = [
    (a_folder, r"is no run of fedgan \(it has no config\.yaml and checkpoints/\)"),
    (another_project, "is no run of fedgan"),
    (a_folder_of_runs, "is no run of fedgan"),
    *((make, "is no folder") for make in (a_file, a_link_to_a_run)),
    *((make, "is no folder") for make in (a_link_to_an_empty_folder, a_link_to_nothing)),
]


@pytest.mark.parametrize(("make", "words"), NO_RUNS)
def test_overwrite_leaves_alone_what_is_no_run(write, refused, tree, tmp_path, make, words):
    make(tmp_path / "run")
    path = write()
    before = tree(tmp_path)
    refused(f"run_dir: .*run {words}", "train", path, "--overwrite")
    refused("run_dir: .*run exists", "train", path)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("overwrite", [["--overwrite"], []])
@pytest.mark.parametrize(
    "run_dir", [".", "..", "here/..", "{here}", "{above}", "/", "{home}", "{home}/sub/.."]
)
def test_folders_that_are_never_a_run(
    write, refused, tree, tmp_path, monkeypatch, run_dir, overwrite
):
    above, home = fill(tmp_path / "above"), fill(tmp_path / "home")
    here = fill(above / "here")
    (here / "here").mkdir()
    (home / "sub").mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    path = write({"run_dir": run_dir.format(here=here, above=above, home=home)})
    before = tree(tmp_path)
    words = "run_dir: .* holds more than a run; name a folder of its own"
    refused(words, "train", path, *overwrite)
    assert tree(tmp_path) == before


def test_what_a_killed_overwrite_left_behind_is_in_nobodys_way(write, tmp_path):
    fill(tmp_path / "run")
    (tmp_path / ".run.new" / "checkpoints").mkdir(parents=True)
    (tmp_path / ".run.old" / "checkpoints").mkdir(parents=True)
    assert main(["train", write({"federation.rounds": 1}), "--overwrite"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml", "run"}


def test_a_place_that_cannot_be_written(write, refused, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    path = str(tmp_path / "file" / "run")
    refused("run_dir: cannot write", "train", write({"run_dir": path}))


def mounted(folder, options):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        pytest.skip("mounting needs root")
    return lambda: subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_disk(write, refused, tmp_path):
    umount = mounted(tmp_path / "disk", "ro")
    try:
        path = str(tmp_path / "disk" / "run")
        words = r"run_dir: cannot write \S+/disk/run\S*: \S+/disk cannot be written"
        refused(words, "train", write({"run_dir": path}))
        refused(words, "train", write({"run_dir": f"{path}/deeper/still"}))
    finally:
        umount()


def test_a_full_disk(write, refused, tmp_path):
    umount = mounted(tmp_path / "disk", "size=64k")
    try:
        path = str(tmp_path / "disk" / "run")
        changes = {"run_dir": path, "model.init_args": {"width": 16}}
        refused(r"disk", "train", write(changes))
        assert not (tmp_path / "disk" / "run").exists()
    finally:
        umount()
