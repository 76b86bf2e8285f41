"""Bad input: exit code 2, one line that names the key, and no run directory left behind."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import torch
import yaml

from fedgan.cli import main
from fedgan.experiment import run

TABLE = [  # what is wrong, what the line must say
    ({"attack.poison_rate": 1.5}, r"attack\.poison_rate: 1\.5 is not in \[0, 1\]"),
    ({"attack.poison_rate": -0.1}, r"attack\.poison_rate: -0\.1 is not in \[0, 1\]"),
    ({"attack.poison_rate": float("nan")}, r"attack\.poison_rate: nan"),
    ({"attack.name": "patch", "attack.clients": [3]}, r"attack\.clients: .*client 3.* 0 to 2"),
    ({"attack.name": "patch", "attack.clients": [-1]}, r"attack\.clients: .*client -1"),
    ({"attack.name": "patch", "attack.clients": [1, 1]}, r"attack\.clients: .*twice"),
    ({"attack.name": "patch", "attack.clients": [0, 1, 2]}, r"attack\.clients: all 3 .*malicious"),
    ({"attack.from_round": 0}, r"attack\.from_round: 0 is too small"),
    ({"attack.from_round": 5, "attack.until_round": 4}, r"attack\.until_round: 4"),
    ({"attack.name": "patch", "attack.init_args": {"size": 17}}, r"size: .*17.*16x16"),
    ({"attack.name": "patch", "attack.init_args": {"size": "big"}}, r"attack\.init_args.*big"),
    ({"attack.name": "patch", "attack.init_args": {"opacity": 2.0}}, r"attack: .*opacity is 2"),
    ({"attack.name": "patch", "attack.init_args": {"colour": 1}}, r"init_args\.colour: unknown"),
    ({"attack.init_args": {"size": 3}}, r"attack\.init_args\.size: unknown.*takes none"),
    ({"attack.name": "pach"}, r"attack\.name: unknown 'pach'; did you mean 'patch'"),
    ({"defense.name": "krumm"}, r"defense\.name: unknown 'krumm'"),
    ({"defense.name": "feddetect", "federation.sample": 0.5}, r"defense\.name: .*at least 3"),
    ({"loss.name": "wgan"}, r"loss\.name: unknown 'wgan'; did you mean 'wgan-gp'"),
    ({"model.name": "stylegan"}, r"model\.name: unknown 'stylegan'"),
    ({"model.init_args": {"width": 0}}, r"model: .*width"),
    ({"evaluate.encoder": "incepton"}, r"evaluate\.encoder.*did you mean 'inception'"),
    ({"evaluate.samples": 4}, r"evaluate\.samples: 4"),
    ({"evaluate.every": -1}, r"evaluate\.every: -1"),
    ({"data.name": "pneumonia"}, r"data\.name: 'pneumonia'.*pneumoniamnist"),
    ({"data.path": "nowhere.npz"}, r"nowhere\.npz"),
    ({"data.size": 28}, r"data\.size: 28"),
    ({"federation.clients": 0}, r"federation\.clients: 0"),
    ({"federation.clients": 49}, r"federation\.clients: 49 clients for 48 training images"),
    ({"federation.clients": 13}, r"partition\.min_images: 4 for each of 13"),
    ({"partition.name": "dirichlet", "partition.alpha": 0.0}, r"partition\.alpha: 0"),
    ({"partition.name": "shards", "partition.classes_per_client": 3}, r"classes_per_client: 3"),
    ({"federation.rounds": -3}, r"federation\.rounds: -3"),
    ({"federation.rounds": 0}, r"federation\.rounds: 0"),
    ({"federation.local_steps": 0}, r"federation\.local_steps: 0"),
    ({"federation.local_epochs": -1}, r"federation\.local_epochs: -1"),
    ({"federation.sample": 0.0}, r"federation\.sample: 0\.0 is not in \(0, 1\]"),
    ({"federation.ema": 1.0}, r"federation\.ema: 1\.0 is not in \[0, 1\)"),
    ({"training.batch_size": 0}, r"training\.batch_size: 0"),
    ({"training.generator_lr": 0.0}, r"training\.generator_lr: 0"),
    ({"training.betas": [0.0, 1.0]}, r"training\.betas\[1\]: 1"),
    ({"training.translate": 0.6}, r"training\.translate: 0\.6"),
    ({"checkpoint.keep": 0}, r"checkpoint\.keep: 0"),
    ({"cluster.devices": 0}, r"cluster\.devices: 0"),
    ({"seed": -1}, r"seed: -1"),
    ({"attack.class_path": "no_such_module.Attack"}, r"attack\.class_path: .*no_such_module"),
    ({"attack.class_path": "fedgan.attacks.patch.Path"}, r"attack\.class_path: .*'Path'"),
    ({"attack.class_path": "Attack"}, r"attack\.class_path: .*module\.ClassName"),
    ({"loss.class_path": "fedgan.attacks.patch.Patch"}, r"loss\.class_path: .*AdversarialLoss"),
]


@pytest.fixture
def write(tiny, tmp_path):
    def make(changes=None):
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(tiny({"run_dir": str(tmp_path / "run"), **(changes or {})})))
        return str(path)

    return make


def refused(capsys, words, *argv):
    """The command fails with code 2 and one line on stderr that says `words`."""
    assert main(list(argv)) == 2
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("fedgan: error: ")
    assert re.search(words, lines[0]), lines[0]


@pytest.mark.parametrize(("changes", "words"), TABLE, ids=[words for _, words in TABLE])
def test_refused_before_anything_is_made(write, capsys, tmp_path, changes, words):
    refused(capsys, words, "train", write(changes))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_more_gpus_than_there_are(write, capsys, tmp_path):
    there = torch.cuda.device_count()
    words = rf"cluster\.devices: .*this machine has {there}; type make train"
    changes = {"cluster.accelerator": "cuda", "cluster.devices": there + 1}
    refused(capsys, words, "train", write(changes))
    assert not (tmp_path / "run").exists()


def test_an_existing_run_directory_is_not_touched(write, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    refused(capsys, r"run_dir: .*run exists; --overwrite", "train", write())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_overwrite_with_a_bad_config_keeps_the_old_run(write, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    refused(capsys, "rounds", "train", write({"federation.rounds": 0}), "--overwrite")
    assert (tmp_path / "run" / "thesis.txt").exists()


def test_overwrite(write, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old.txt").write_text("old")
    assert main(["train", write({"federation.rounds": 1}), "--overwrite"]) == 0
    assert (tmp_path / "run" / "summary.json").exists()
    assert not (tmp_path / "run" / "old.txt").exists()
    assert not (tmp_path / ".run.new").exists()


def test_a_place_that_cannot_be_written(write, capsys, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    path = str(tmp_path / "file" / "run")
    refused(capsys, "run_dir: cannot write", "train", write({"run_dir": path}))


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


def test_a_read_only_disk(write, capsys, tmp_path):
    umount = mounted(tmp_path / "disk", "ro")
    try:
        path = str(tmp_path / "disk" / "run")
        refused(capsys, "run_dir: cannot write .*[Rr]ead-only", "train", write({"run_dir": path}))
    finally:
        umount()


def test_a_full_disk(write, capsys, tmp_path):
    umount = mounted(tmp_path / "disk", "size=64k")
    try:
        path = str(tmp_path / "disk" / "run")
        changes = {"run_dir": path, "model.init_args": {"width": 16}}
        refused(capsys, r"disk", "train", write(changes))
        assert not (tmp_path / "disk" / "run").exists()
    finally:
        umount()


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(tiny({"run_dir": str(folder)}))
    return folder


@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_no_run_there(command, capsys, tmp_path):
    refused(capsys, "no run here", command, str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_every_checkpoint_corrupted(command, finished, capsys, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    refused(capsys, r"checkpoint \S*round_0002\.pt: damaged", command, str(tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_the_newest_corrupted_goes_back_to_the_one_before(finished, capsys, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "round_0002.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert main(["resume", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "round_0002.pt: damaged" in said.err
    assert "going back to round_0001.pt" in said.err
    assert newest.stat().st_size > 1000


def test_evaluate_of_a_checkpoint_that_is_not_there(finished, capsys):
    refused(capsys, "x.pt: no such file", "evaluate", str(finished), "--checkpoint=x.pt")
