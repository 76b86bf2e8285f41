"""One line and an exit code for what goes wrong; from one rank where there are several."""

from __future__ import annotations

import socket
import sys

import pytest

from fedgan import config
from fedgan.cli import main


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train"], "which config"),
        (["train", "no.yaml"], "no.yaml: no such config"),
        (["train", "quickstart", "--overwrit"], "--overwrit: unknown key"),
        (["train", "audit"], "no such config, but `fedgan grid audit` knows it"),
        (["train", "quickstart", "--defense.rules=krum"], "expected list, got krum; type [krum]"),
        (["grid"], "which grid"),
        (["grid", "nope.yaml"], "no such grid; known: "),
        (["components", "--seed=2"], "unexpected argument '--seed=2'"),
        (["data", "list", "--seed=2"], "unexpected argument '--seed=2'"),
        (["resume", "x", "--cluster.devices=2"], "x: no run here"),
        (["data", "show", "npz"], "data.path"),
        (["data", "show", "brain-mry"], "did you mean 'brain-mri'"),
    ],
)
def test_one_line_and_code_2(capsys, argv, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("fedgan: error: ")
    assert words in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(config, "read", stop)
    assert main(["train", "quickstart"]) == 130
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said == "fedgan: interrupted\n"
    assert sys.exc_info() == (None, None, None)


@pytest.fixture
def rank_1(monkeypatch):
    """One of four processes that torchrun has started, where rank 0 is nowhere to be met."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        values = {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": 4}
        for name, value in {**values, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))
        yield nobody


@pytest.mark.parametrize(
    "words",
    [
        ["train", "smoke", "--federation.round=1"],
        ["train", "smoke", "--cluster.devices=2"],
        ["train", "--no-such-option"],
        ["data"],
    ],
)
def test_what_all_ranks_meet_only_rank_0_tells(rank_1, tmp_path, monkeypatch, capsys, words):
    monkeypatch.setattr("fedgan.cli.LONGEST_DOUBT", 1.0)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert main(words) == 2
    assert capsys.readouterr().err.count("fedgan: error:") == 1


def test_what_one_rank_meets_it_tells_where_rank_0_waits_for_it(rank_1, monkeypatch, capsys):
    monkeypatch.setattr("fedgan.cli.LONGEST_DOUBT", 1.0)
    assert main(["train", "no.yaml"]) == 2
    assert capsys.readouterr().err == ""
    rank_1.listen()
    assert main(["train", "no.yaml"]) == 2
    assert capsys.readouterr().err.startswith("fedgan: error: rank 1: no.yaml: no such config")


def test_ctrl_c_before_the_meeting_is_told_once(rank_1, monkeypatch, capsys):
    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fedgan.config.read", pressed)
    assert main(["train", "smoke"]) == 130
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert main(["train", "smoke"]) == 130
    assert capsys.readouterr().err == "fedgan: interrupted\n"
