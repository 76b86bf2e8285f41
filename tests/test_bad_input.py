"""Bad input: exit code 2, one line that names the key, and no run directory left behind."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from fedgan.cli import main
from fedgan.experiment import run
from fedgan.rundir import held

ROOT = Path(__file__).resolve().parents[1]
TABLE = [  # what is wrong, what the line must say
    ({"attack.poison_rate": 1.5}, r"attack\.poison_rate: 1\.5 is not in \[0, 1\]"),
    ({"attack.poison_rate": -0.1}, r"attack\.poison_rate: -0\.1 is not in \[0, 1\]"),
    ({"attack.poison_rate": float("nan")}, r"attack\.poison_rate: nan"),
    ({"attack.name": "patch", "attack.clients": [3]}, r"attack\.clients: .*client 3.* 0 to 2"),
    ({"attack.name": "patch", "attack.clients": [-1]}, r"attack\.clients: .*client -1"),
    ({"attack.name": "patch", "attack.clients": [1, 1]}, r"attack\.clients: .*twice"),
    ({"attack.name": "patch", "attack.clients": [0, 1, 2]}, r"attack\.clients: all 3 .*malicious"),
    ({"attack.name": "patch", "attack.clients": []}, r"attack\.clients: is empty"),
    ({"attack.name": "patch", "attack.poison_rate": 0.03}, r"poison_rate: 0\.03 of client 0's 16"),
    ({"attack.from_round": 0}, r"attack\.from_round: 0 is too small"),
    ({"attack.from_round": 5, "attack.until_round": 4}, r"attack\.until_round: 4"),
    ({"attack.name": "patch", "attack.init_args": {"size": 17}}, r"size: .*17.*16x16"),
    ({"attack.name": "patch", "attack.init_args": {"size": "big"}}, r"attack\.init_args.*big"),
    ({"attack.name": "patch", "attack.init_args": {"opacity": 2.0}}, r"attack: .*opacity is 2"),
    ({"attack.name": "patch", "attack.init_args": {"colour": 1}}, r"init_args\.colour: unknown"),
    ({"attack.init_args": {"size": 3}}, r"attack\.init_args\.size: unknown.*takes none"),
    ({"attack.name": "patch", "attack.share": 0.0}, r"attack\.share: 0\.0 is not in \(0, 1\)"),
    ({"attack.name": "patch", "attack.share": 1.0}, r"attack\.share: 1\.0 is not in \(0, 1\)"),
    (
        {"attack.name": "patch", "attack.share": 0.5, "federation.clients": 1},
        r"attack\.share: of 1 client",
    ),
    ({"attack.on_rounds": 2}, r"attack\.off_rounds: is null; on_rounds and off_rounds go together"),
    ({"attack.off_rounds": 2}, r"attack\.on_rounds: is null"),
    ({"attack.on_rounds": 0, "attack.off_rounds": 2}, r"attack\.on_rounds: 0 is too small"),
    ({"attack.on_rounds": 1, "attack.off_rounds": 0}, r"attack\.off_rounds: 0 is too small"),
    ({"attack.only_label": -1}, r"attack\.only_label: -1 is too small"),
    (
        {"attack.name": "patch", "attack.only_label": 2},
        r"attack\.only_label: there is no class 2; classes are 0 to 1",
    ),
    ({"attack.only_label": 1}, r"attack\.only_label: is 1, but attack\.name is none"),
    ({"attack.name": "patch", "attack.from_round": 3}, r"attack\.from_round: 3 is after the last"),
    (
        {"attack.name": "patch", "attack.only_label": 1, "attack.poison_rate": 0.05},
        r"attack\.poison_rate: 0\.05 of client 0's \d images of class 1 is none",
    ),
    (
        {
            "attack.name": "patch",
            "attack.clients": [0, 1],
            "attack.only_label": 1,
            "partition.name": "shards",
            "partition.classes_per_client": 1,
        },
        r"attack\.only_label: malicious client \d has no images of class 1",
    ),
    ({"attack.name": "blended", "attack.init_args": {"alpha": 0}}, r"init_args\.alpha is 0"),
    ({"attack.name": "sig", "attack.init_args": {"delta": -1}}, r"init_args\.delta is -1"),
    ({"attack.name": "sig", "attack.init_args": {"frequency": 8}}, r"init_args\.frequency: 8"),
    (
        {"attack.name": "wanet", "attack.init_args": {"grid": 17}},
        r"init_args\.grid: 17.* 16 pixels",
    ),
    (
        {"attack.name": "dba", "attack.init_args": {"length": 7}},
        r"init_args\.length: .*5x17.*16x16",
    ),
    ({"attack.name": "noise", "attack.init_args": {"amplitude": 0.5}}, r"amplitude is 0\.5"),
    (
        {"attack.name": "flip-labels", "attack.init_args": {"source": 0, "target": 2}},
        r"attack\.init_args\.target: there is no class 2; classes are 0 to 1",
    ),
    (
        {"attack.name": "flip-labels", "attack.init_args": {"source": 0}},
        r"init_args\.target is null",
    ),
    (
        {
            "attack.name": "flip-labels",
            "attack.init_args": {"source": 0, "target": 1},
            "attack.clients": [0, 1],
            "partition.name": "shards",
            "partition.classes_per_client": 1,
        },
        r"attack: flip-labels changes none of malicious client \d's \d+ images$",
    ),
    (
        {
            "attack.name": "flip-labels",
            "attack.init_args": {"source": 0, "target": 1},
            "attack.only_label": 1,
        },
        r"attack: flip-labels changes none of malicious client 0's \d+ images of class 1$",
    ),
    (
        {
            "attack.name": "flip-labels",
            "attack.init_args": {"source": 0, "target": 1},
            "attack.poison_rate": 0.05,  # of all 16 it would be one
        },
        r"attack\.poison_rate: 0\.05 of client 0's \d images that flip-labels changes is none",
    ),
    ({"attack.name": "pach"}, r"attack\.name: unknown 'pach'; did you mean 'patch'"),
    ({"defense.name": "krumm"}, r"defense\.name: unknown 'krumm'"),
    (
        {"defense.name": "feddetect", "federation.sample": 0.5},
        r"defense: feddetect needs n >= 4: n is 2$",
    ),
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
    ({"loss.init_args": {"gamma": None}}, r"loss\.init_args\.gamma: null is not a value"),
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


def fill(folder):
    """Makes a folder look like a run of fedgan with a thesis in it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 1")
    (folder / "checkpoints").mkdir()
    (folder / "thesis.txt").write_text("years of work")
    return folder


def tree(folder):
    """All there is under a folder, and what is in it; links as links."""
    return {
        str(path.relative_to(folder)): path.readlink()
        if path.is_symlink()
        else path.is_file() and path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"federation.rounds": 0}, "rounds"),
        ({"data.path": "nowhere.npz"}, "nowhere"),
        ({"attack.name": "patch", "attack.poison_rate": 0.03}, "poison_rate"),
    ],
)
def test_overwrite_with_a_bad_config_keeps_the_old_run(write, capsys, tmp_path, changes, words):
    fill(tmp_path / "run")
    path = write(changes)
    before = tree(tmp_path)
    refused(capsys, words, "train", path, "--overwrite")
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
def test_overwrite_leaves_alone_what_is_no_run(write, capsys, tmp_path, make, words):
    make(tmp_path / "run")
    path = write()
    before = tree(tmp_path)
    refused(capsys, f"run_dir: .*run {words}", "train", path, "--overwrite")
    refused(capsys, "run_dir: .*run exists", "train", path)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("overwrite", [["--overwrite"], []])
@pytest.mark.parametrize(
    "run_dir", [".", "..", "here/..", "{here}", "{above}", "/", "{home}", "{home}/sub/.."]
)
def test_folders_that_are_never_a_run(write, capsys, tmp_path, monkeypatch, run_dir, overwrite):
    above, home = fill(tmp_path / "above"), fill(tmp_path / "home")
    here = fill(above / "here")
    (here / "here").mkdir()
    (home / "sub").mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    path = write({"run_dir": run_dir.format(here=here, above=above, home=home)})
    before = tree(tmp_path)
    words = "run_dir: .* holds more than a run; name a folder of its own"
    refused(capsys, words, "train", path, *overwrite)
    assert tree(tmp_path) == before


def test_what_a_killed_overwrite_left_behind_is_in_nobodys_way(write, tmp_path):
    fill(tmp_path / "run")
    (tmp_path / ".run.new" / "checkpoints").mkdir(parents=True)
    (tmp_path / ".run.old" / "checkpoints").mkdir(parents=True)
    assert main(["train", write({"federation.rounds": 1}), "--overwrite"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml", "run"}


def test_refusals_do_not_wait_for_lightning(write, tiny_npz, tmp_path):
    fill(tmp_path / "old")
    lines = [
        ["--attack.clients=[9]", "--attack.name=patch"],
        ["--federation.rounds=0"],
        ["--loss.name=wgan"],
        ["--model.init_args.width=0"],
        ["--data.path=nowhere.npz"],
        ["--partition.min_images=40"],
        ["--attack.name=patch", "--attack.init_args.size=17"],
        ["--attack.name=patch", "--attack.poison_rate=0.03"],
        ["--cluster.accelerator=cuda", "--cluster.devices=999"],
        [f"--run_dir={tmp_path / 'old'}"],
        ["--defense.name=feddetect", "--federation.sample=0.5"],
    ]
    commands = [["train", write(), *line] for line in lines]
    commands += [["resume", str(tmp_path)], ["evaluate", str(tmp_path / "old"), "--seed=2"]]
    commands += [["resume", str(tmp_path / "old")]]  # has no checkpoint
    script = f"""
import sys
from fedgan.cli import main
for command in {commands!r}:
    assert main(command) == 2, command
    assert "lightning" not in sys.modules, command
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(commands), done.stderr


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
        words = r"run_dir: cannot write \S+/disk/run\S*: \S+/disk cannot be written"
        refused(capsys, words, "train", write({"run_dir": path}))
        refused(capsys, words, "train", write({"run_dir": f"{path}/deeper/still"}))
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
    for path in (tmp_path / "run" / "checkpoints").glob("*/server.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    refused(capsys, r"checkpoint \S*round_0002/server\.pt: damaged", command, str(tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_the_newest_corrupted_goes_back_to_the_one_before(finished, capsys, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "round_0002" / "client_0001.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert main(["resume", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "round_0002: damaged" in said.err
    assert "going back to round_0001" in said.err
    assert newest.stat().st_size > 1000


@pytest.mark.parametrize("words", [["resume"], ["evaluate"], ["generate", "--samples=4"]])
@pytest.mark.parametrize("every", [0, 1])
def test_a_run_without_a_checkpoint(finished, capsys, tmp_path, words, every):
    """What the line says to type makes one."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").mkdir()
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        text.replace("checkpoint: {every: 1", f"checkpoint: {{every: {every}")
    )
    out = ["--out", str(tmp_path / "x.npz")] if words[0] == "generate" else []
    command = [words[0], str(folder), *words[1:], *out]
    typed = f"fedgan train {folder}/config.yaml --run_dir={folder} --resume"
    when = "at the end" if every == 0 else "after each round"
    refused(capsys, f"no checkpoint yet, so there is no generator; `{typed}` .* {when}", *command)
    with held(folder):
        refused(capsys, f"it is being trained, and is saved {when}", *command)
    if words[0] == "generate":
        assert main(typed.split()[1:]) == 0
        assert main(command) == 0


def test_evaluate_of_a_checkpoint_that_is_not_there(finished, capsys):
    refused(capsys, "x: no such folder", "evaluate", str(finished), "--checkpoint=x")


@pytest.mark.parametrize("command", ["resume", "evaluate"])
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--seed=2", r"--seed=2: of a run that has begun, only --cluster\.\*"),
        ("--federation.rounds=9", r"--federation\.rounds=9: of a run that has begun"),
        ("--attack.name=none", r"--attack\.name=none: of a run that has begun"),
        ("--run_dir=x", r"--run_dir=x: of a run that has begun"),
        ("--clusters.devices=2", r"--clusters\.devices=2: of a run that has begun"),
        ("--cluster={}", r"--cluster=\{\}: of a run that has begun"),
        ("x", r"x: (of a run that has begun|no run here)"),
        ("--cluster.device=2", r"--cluster\.device: unknown key; did you mean 'devices'"),
        ("--cluster.devices=0", r"cluster\.devices: 0"),
        ("--cluster.devices=two", r"cluster\.devices.*two"),
        ("--evaluate.encoder=incepton", r"did you mean 'inception'"),
    ],
)
def test_overrides_that_a_begun_run_refuses(finished, capsys, command, override, words):
    before = tree(finished)
    refused(capsys, words, command, str(finished), override)
    assert tree(finished) == before


@pytest.mark.parametrize(
    ("command", "old", "new", "words"),
    [
        ("resume", " width: 4", " width: 6", r"the checkpoint has \d+ shared parameters, the netw"),
        ("resume", "share: both", "share: generator", r"the checkpoint has \d+ shared parameters"),
        ("resume", "clients: 3", "clients: 4", "the checkpoint has 3 clients, config.yaml 4"),
        ("resume", "clients: 3", "clients: 2", "the checkpoint has 3 clients, config.yaml 2"),
        ("evaluate", " width: 4", " width: 6", "the checkpoint is of another generator"),
    ],
)
def test_a_config_that_was_edited(finished, capsys, tmp_path, command, old, new, words):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    tables = ("metrics.csv", "clients.csv", "summary.json")
    before = [(tmp_path / "run" / name).read_bytes() for name in tables]
    refused(capsys, words, command, str(tmp_path / "run"))
    assert [(tmp_path / "run" / name).read_bytes() for name in tables] == before
