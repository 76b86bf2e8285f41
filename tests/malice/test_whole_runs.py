"""Whole runs under every attack on updates and reports: exact, and written down."""

from __future__ import annotations

import csv
import shutil

import pytest

from fedgan.checkpoint import load_server
from fedgan.experiment import resume, run

EXACT = {"name": "scaling", "init_args": {"exact": True}}
BOUND = {"name": "norm-bound", "init_args": {"norm": 0.05}}
CLOCK = ("seconds", "training_seconds", "images_per_second")
RUN = {
    "federation.rounds": 3,
    "federation.sample": 0.8,
    "partition.name": "quantity",
    "attack.name": "patch",
    "checkpoint.keep": 9,
}
ATTACKS = {
    "scaling": {"attack.update": "scaling", "attack.report": "median"},
    "exact": {"attack.update": EXACT, "attack.report": "clean", "training.flip": True},
    "alie": {"attack.update": "alie", "attack.name": "none"},
    "gaussian": {"attack.update": "gaussian", "attack.name": "none"},
    "stale": {"attack.update": "free-rider", "attack.name": "none"},
    "chain": {"attack.update": ["neurotoxin", BOUND]},
}


def table(path):
    with path.open() as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def without(five, tmp_path_factory):
    """The generator of a run whose clients send what they have trained; each run once."""
    known = {}

    def generator(changes):
        changes = {k: v for k, v in changes.items() if k not in ("attack.update", "attack.report")}
        key = repr(sorted(changes.items()))
        if key not in known:
            folder = tmp_path_factory.mktemp("without") / "run"
            known[key] = run(five({**changes, "run_dir": str(folder)}))["generator_sha256"]
        return known[key]

    return generator


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_bytes_on_two_processes_and_after_a_resume(five, tmp_path, name, without):
    one, two = tmp_path / "one", tmp_path / "two"
    whole = run(five({**RUN, **ATTACKS[name], "run_dir": str(one)}))
    assert whole["generator_sha256"] != without({**RUN, **ATTACKS[name]})
    changes = {**RUN, **ATTACKS[name], "run_dir": str(two), "cluster.devices": 2}
    assert run(five(changes))["generator_sha256"] == whole["generator_sha256"]
    for path in ("clients.csv", "metrics.csv"):
        assert table(one / path) == table(two / path)
    shutil.rmtree(one / "checkpoints" / "round_0003")
    again = resume(one, ["--cluster.devices=2"])
    assert again["generator_sha256"] == whole["generator_sha256"]
    assert again["clients"] == whole["clients"]
    assert table(one / "clients.csv") == table(two / "clients.csv")


@pytest.mark.parametrize(
    "update", ["sign-flip", "ipm", "min-max", "min-sum", "fang-krum", "norm-bound"]
)
def test_a_run_of_every_other_attack(five, tmp_path, update, without):
    clients = [1] if update == "fang-krum" else [1, 3]  # of 5 Krum bears one
    choice = BOUND if update == "norm-bound" else update
    changes = {"attack.update": choice, "attack.clients": clients}
    summary = run(five({**changes, "run_dir": str(tmp_path / "run")}))
    assert summary["generator_sha256"] != without({})
    assert summary["attack_on_updates"] == [update]
    assert [row["malicious"] for row in summary["clients"]] == [i in clients for i in range(5)]
    rows = table(tmp_path / "run" / "clients.csv")
    assert all(row["status"] == "ok" for row in rows)
    assert {int(row["client"]) for row in rows if row["malicious"] == "True"} == {*clients}


def test_the_clean_arm_has_no_malicious_client_and_remembers_nothing(five, tmp_path):
    attack = {"attack.name": "patch"}
    rate = {"attack.poison_rate": 0.0}
    both = {"attack.update": "scaling", "attack.report": "median"}
    plain = run(five({**attack, **rate, "run_dir": str(tmp_path / "plain")}))
    clean = run(five({**attack, **rate, **both, "run_dir": str(tmp_path / "clean")}))
    assert clean["generator_sha256"] == plain["generator_sha256"]
    assert not any(row["malicious"] for row in clean["clients"])
    assert load_server(tmp_path / "clean" / "checkpoints" / "round_0002")["malice"] == {}


OWN = """
import torch
from fedgan.attacks.reports import ReportAttack
from fedgan.attacks.updates import UpdateAttack


class Double(UpdateAttack):
    def __init__(self, by: float = 2.0) -> None:
        self.by = by

    def corrupt(self, own, client, planned, view):
        return own * self.by


class Boast(ReportAttack):
    def forge(self, own, honest, view):
        return torch.zeros_like(own)
"""


def test_ones_own_attacks_from_ones_own_file(tiny, tmp_path, monkeypatch):
    (tmp_path / "own_lies.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = {
        "attack.update": [{"class_path": "own_lies.Double", "init_args": {"by": 3.0}}],
        "attack.report": {"class_path": "own_lies.Boast"},
        "run_dir": str(tmp_path / "run"),
    }
    summary = run(tiny(changes))
    assert (summary["attack_on_updates"], summary["attack_on_reports"]) == (["Double"], "Boast")
    rows = table(tmp_path / "run" / "clients.csv")
    assert {row["g_loss"] == "0.0" for row in rows if row["client"] == "0"} == {True}
    assert {row["g_loss"] == "0.0" for row in rows if row["client"] != "0"} == {False}
