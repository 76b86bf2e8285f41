"""Configs that are refused before anything is made."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
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
        {"defense.name": "audit", "defense.init_args": {"cleanup": "undo"}},
        r"cleanup: expected one of \['auto', 'remove', 'rollback', 'none'\], got undo$",
    ),
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
    ({"training.lr_end_factor": 0.0}, r"training\.lr_end_factor: 0\.0 is not in \(0, 1\]"),
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


@pytest.mark.parametrize(("changes", "words"), TABLE, ids=[words for _, words in TABLE])
def test_refused_before_anything_is_made(write, refused, tmp_path, changes, words):
    refused(words, "train", write(changes))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_more_gpus_than_there_are(write, refused, tmp_path):
    there = torch.cuda.device_count()
    words = rf"cluster\.devices: .*this machine has {there}; type make train"
    changes = {"cluster.accelerator": "cuda", "cluster.devices": there + 1}
    refused(words, "train", write(changes))
    assert not (tmp_path / "run").exists()


def test_refusals_do_not_wait_for_lightning(write, tiny_npz, tmp_path):
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    (tmp_path / "old" / "config.yaml").write_text("seed: 1")
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
