"""Help, training, components and data; in a process of its own where that matters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fedgan
from fedgan import config
from fedgan.cli import main

COMMANDS = [[], ["train"], ["resume"], ["evaluate"], ["components"], ["slurm"], ["data"]]
COMMANDS += [["detect"], ["generate"], ["grid"]]
COMMANDS += [["data", verb] for verb in ("list", "show", "fetch")]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_is_quick_and_does_not_import_torch(fedgan_command, tmp_path, command):
    done = fedgan_command(*command, "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0, done.stderr
    assert "usage: fedgan" in done.stdout
    found = re.findall(r"import time:\s+\d+ \|\s+(\d+) \|( *)(\S+)", done.stderr)
    assert found
    heavy = {"torch", "lightning", "matplotlib", "sklearn", "wandb", "torchvision"}
    assert not heavy & {name.split(".")[0] for _, _, name in found}
    at_the_top = sum(int(micros) for micros, indent, _ in found if len(indent) == 1)
    assert at_the_top < 1.5e6


def test_help_of_train_tells_every_key(capsys):
    assert main(["train", "--help"]) == 0
    said = capsys.readouterr().out
    groups = {"federation", "attack", "defense", "evaluate", "cluster"}
    for key in config.known_keys() - groups:
        by_mapping = ("encoder", "watch_encoder", "wandb", "update", "report")
        if "." in key and (key.count(".") == 1 or key.split(".")[1] not in by_mapping):
            assert f"--{key}" in said, key
    assert "Communication rounds" in said


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert fedgan.__version__ in capsys.readouterr().out


def test_print_config_is_a_config(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "quickstart", "--print_config", "--seed=9"]) == 0
    first = capsys.readouterr().out
    assert yaml.safe_load(first)["seed"] == 9
    (tmp_path / "mine.yaml").write_text(first)
    assert main(["train", "mine.yaml", "--print_config"]) == 0
    again = yaml.safe_load(capsys.readouterr().out)
    before = yaml.safe_load(first)
    again.pop("python_path")
    before.pop("python_path")
    assert again == before
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_train_from_the_shell_and_resume(fedgan_command, tiny, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(tiny()))
    done = fedgan_command("train", "mine.yaml", "--federation.rounds=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "runs/mine" in done.stdout
    assert "round 1/1" in done.stdout
    assert "\x1b[" not in done.stdout  # plain lines where there is no terminal
    run_dir = tmp_path / "runs" / "mine"
    wanted = {"config.yaml", "metrics.csv", "clients.csv", "samples", "curves.png"}
    wanted |= {"summary.json", "checkpoints", "log.txt"}
    assert wanted <= {entry.name for entry in run_dir.iterdir()}
    again = fedgan_command("train", "mine.yaml", cwd=tmp_path)
    assert again.returncode == 2
    assert len(again.stderr.strip().splitlines()) == 1
    assert "--overwrite" in again.stderr
    (run_dir / "config.yaml").write_text(
        (run_dir / "config.yaml").read_text().replace("rounds: 1", "rounds: 2")
    )
    capsys.readouterr()
    assert main(["resume", str(run_dir)]) == 0
    assert "round 2/2" in capsys.readouterr().out


def test_a_reader_who_has_heard_enough_is_no_error(fedgan_command, tmp_path):
    command = f"{sys.executable} -m fedgan train --help | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(Path(fedgan.__file__).parents[1])}
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=100, env=environment
    )
    assert done.stdout.startswith("usage: fedgan")
    assert done.stderr == ""


def test_components_lists_names_and_arguments(capsys):
    assert main(["components"]) == 0
    said = capsys.readouterr().out
    for word in ("patch", "feddetect", "dcgan", "wgan-gp", "brain-mri", "inception", "opacity"):
        assert word in said


def test_components_tells_all_about_one(capsys):
    assert main(["components", "krum"]) == 0
    said = capsys.readouterr().out
    assert "Blanchard" in said
    assert "init_args.f = 1" in said
    assert "bulyan" not in said
    assert main(["components", "krumm"]) == 2
    assert "did you mean 'krum'" in capsys.readouterr().err


def test_data_list_names_sources_and_flags(capsys):
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    assert "brain-mri" in said
    assert "pneumoniamnist" in said


def test_data_show_writes_its_pictures(tiny, tmp_path, capsys):
    path, out = tmp_path / "mine.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(tiny()))
    assert main(["data", "show", str(path), f"--out={out}"]) == 0
    assert {picture.name for picture in out.iterdir()} == {"tiny.png", "tiny-clients.png"}
    assert "tiny: 48 train, 16 val, 16 test; 1 x 16 x 16" in capsys.readouterr().out


def test_everything_is_a_plain_call_too(tiny, tmp_path):
    summary = fedgan.run(tiny({"run_dir": str(tmp_path / "run")}))
    assert summary["rounds"] == 2
    assert fedgan.resume(tmp_path / "run")["generator_sha256"] == summary["generator_sha256"]
    assert "fd_domain" in fedgan.evaluate(tmp_path / "run")["figures"]
    with pytest.raises(fedgan.UserError, match="exists"):
        fedgan.run(tiny({"run_dir": str(tmp_path / "run")}))
    with pytest.raises(fedgan.UserError, match="not 3"):
        fedgan.run(3)
    with pytest.raises(AttributeError, match="nothing"):
        fedgan.nothing  # noqa: B018
