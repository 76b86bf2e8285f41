"""What resume, evaluate and generate refuse of runs, and of their checkpoints."""

from __future__ import annotations

import shutil

import pytest

from fedgan.cli import main
from fedgan.experiment import run
from fedgan.rundir import held


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(tiny({"run_dir": str(folder)}))
    return folder


@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_no_run_there(refused, command, tmp_path):
    refused("no run here", command, str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_folder_of_runs_is_told_from_a_run(finished, refused):
    refused("no run here .*; there are runs in it, as .*/run$", "compare", str(finished.parent))


@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_every_checkpoint_corrupted(finished, refused, command, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*/server.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    refused(r"checkpoint \S*round_0002/server\.pt: damaged", command, str(tmp_path / "run"))
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
def test_a_run_without_a_checkpoint(finished, refused, tmp_path, words, every):
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
    refused(f"no checkpoint yet, so there is no generator; `{typed}` .* {when}", *command)
    with held(folder):
        refused(f"it is being trained, and is saved {when}", *command)
    if words[0] == "generate":
        assert main(typed.split()[1:]) == 0
        assert main(command) == 0


def test_evaluate_of_a_checkpoint_that_is_not_there(finished, refused):
    refused("x: no such folder", "evaluate", str(finished), "--checkpoint=x")


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
def test_overrides_that_a_begun_run_refuses(finished, refused, tree, command, override, words):
    before = tree(finished)
    refused(words, command, str(finished), override)
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
def test_a_config_that_was_edited(finished, refused, tmp_path, command, old, new, words):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    tables = ("metrics.csv", "clients.csv", "summary.json")
    before = [(tmp_path / "run" / name).read_bytes() for name in tables]
    refused(words, command, str(tmp_path / "run"))
    assert [(tmp_path / "run" / name).read_bytes() for name in tables] == before
