"""Recovery of whole runs, from what their evaluations say."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from fedgan.cli import main
from fedgan.errors import UserError
from fedgan.recoveries import DISTANCE, recoveries


@pytest.fixture
def run(tmp_path):
    """A run directory that says it was measured: `run("clean", seed=1, fd=10.0)`."""

    def make(name, seed=1, fd=10.0, presence=0.0, samples=100, fingerprint="x", **config):
        folder = tmp_path / f"{name}-{seed}"
        folder.mkdir()
        attack = {"name": "patch", "poison_rate": float(name != "clean")}
        defense = {"name": "median" if name == "defended" else "none"}
        values = {"seed": seed, "attack": attack, "defense": defense, **config}
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        told = {
            "round": 30,
            "final": {
                "samples": samples,
                "encoders": [{"name": "domain", "fingerprint": fingerprint}],
            },
            "figures": {"fd_domain": fd, "fd_domain_floor": 1.0, "presence": presence},
        }
        (folder / "evaluation.json").write_text(json.dumps(told))
        return folder

    return make


def arms(run, seeds=(1, 2, 3)):
    return {
        "clean": [run("clean", seed, 10.0 + seed / 10, 0.0) for seed in seeds],
        "attacked": [run("attacked", seed, 30.0 + seed / 9, 0.8) for seed in seeds],
        "defended": [run("defended", seed, 15.0 - seed / 20, 0.2) for seed in seeds],
    }


def test_recovery_is_of_distances_and_of_presence(run):
    found = recoveries(**arms(run))
    assert found.keys() == {"fd_domain", "presence"}
    assert found["fd_domain"].value == pytest.approx(0.76, abs=0.01)
    assert found["fd_domain"].low < found["fd_domain"].value < found["fd_domain"].high
    assert found["presence"].value == pytest.approx(0.75)


def test_the_command_prints_and_writes_it_without_measuring_again(run, capsys, monkeypatch):
    monkeypatch.setattr("fedgan.experiment.evaluate", None)
    those = arms(run)
    line = [
        *("evaluate", *map(str, those["defended"]), "--only=recovery"),
        *(
            *(f"--clean={path}" for path in those["clean"]),
            "--attacked",
            *map(str, those["attacked"]),
        ),
    ]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert "fd_domain: 77 % of the distance lost is won back (95 % interval" in said
    assert "3 seeds, paired" in said
    told = json.loads((those["defended"][0] / "recovery.json").read_text())
    assert told["recovery"]["presence"]["value"] == pytest.approx(0.75)
    assert told["runs"]["clean"] == [str(path) for path in those["clean"]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 50}, "are not alike in images: 50 against 100"),
        ({"fingerprint": "y"}, "are not alike in encoders: y against x"),
        ({"seed": 2}, "have both seed 2"),
        ({"federation": {"rounds": 9}}, r"alike in federation.rounds: 9 against 20"),
        ({"data": {"name": "pneumoniamnist"}}, r"not alike in data.name"),
        ({"attack": {"name": "sig"}}, "alike in attack.name: sig against patch"),
        ({"attack": {"name": "none"}}, "is not attacked; it is among the defended runs"),
        ({"defense": {"name": "none"}}, "have the same defence"),
    ],
)
def test_runs_must_be_comparable(run, tmp_path, change, words):
    those = arms(run, seeds=(1, 2))
    for seed in {1, change.get("seed", 1)}:
        shutil.rmtree(tmp_path / f"defended-{seed}")
    own = run("defended", **{"seed": 1, **change})
    those["defended"][0] = own
    with pytest.raises(UserError, match=words):
        recoveries(**those)


def test_encoders_of_their_own_need_the_same_seeds(run):
    those = {
        "clean": [run("clean", 1, fingerprint="x")],
        "attacked": [
            run("attacked", seed, 30.0, fingerprint=f) for seed, f in ((1, "x"), (2, "y"))
        ],
        "defended": [run("defended", 1, fingerprint="x")],
    }
    with pytest.raises(UserError, match="the three arms must have the same seeds"):
        recoveries(**those)


def test_a_run_that_was_not_measured_is_told(run):
    those = arms(run, seeds=(1,))
    (those["attacked"][0] / "evaluation.json").unlink()
    with pytest.raises(UserError, match=r"attacked-1 has no evaluation.json; `fedgan evaluate"):
        recoveries(**those)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["evaluate", "x", "--clean", "y"], "go together"),
        (["evaluate", "x", "--only=recovery"], "needs --clean and --attacked"),
    ],
)
def test_what_is_refused(capsys, argv, words):
    assert main(argv) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("fid", True),
        ("kid", True),
        ("fd_efficientnet-lite0", True),
        ("kd_domain", True),
        ("fd_domain_floor", False),
        ("fd_domain_ratio", False),
        ("kd_domain_worst_class", False),
        ("fd_domain_infinity_floor", False),
        ("is_domain", False),
        ("presence", False),
    ],
)
def test_which_figures_are_distances(name, is_one):
    assert bool(DISTANCE.fullmatch(name)) == is_one
