"""Figures and images of a run, and those of somebody else's images."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import fedgan
from fedgan.cli import main
from fedgan.data.given import load_given
from fedgan.tracking.records import read_table


def test_evaluate_prints_the_figures(tiny, tmp_path, capsys):
    fedgan.run(tiny({"run_dir": str(tmp_path / "run")}))
    capsys.readouterr()
    for samples in ("--samples=16", "--evaluate.samples=12"):
        assert main(["evaluate", str(tmp_path / "run"), samples, "--cluster.threads=1"]) == 0
        said = capsys.readouterr().out
        assert "fd_domain" in said
        assert "evaluation.json" in said
        found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
        assert found["final"]["samples"] == int(samples.split("=")[1])


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A run directory."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    fedgan.run(tiny({"run_dir": str(folder), "attack.name": "patch", "evaluate.rounds": [1]}))
    return folder


def test_a_full_look_on_the_way_has_its_file_and_its_row(trained):
    found = json.loads((trained / "evaluations" / "round_0001.json").read_text())
    (row,) = read_table(trained / "evaluations.csv")
    assert found["round"] == 1
    assert row.pop("round") == "1"
    assert {"fd_domain", "presence"} <= set(found["figures"])
    assert {name: float(value) for name, value in row.items()} == pytest.approx(found["figures"])
    assert found["details"]["detection"]["benign_client_rounds"] == 2  # this round's own


def test_a_run_ends_with_the_evaluation_that_its_summary_tells(trained):
    found = json.loads((trained / "evaluation.json").read_text())
    summary = json.loads((trained / "summary.json").read_text())
    assert found["round"] == 2
    for key in ("figures", "details", "final", "generator_sha256"):
        assert found[key] == summary[key]


def test_only_some_measures_are_taken_and_the_others_kept(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    before = json.loads((folder / "evaluation.json").read_text())
    found = fedgan.evaluate(folder, only=["presence"])
    of_presence = ("presence", "region_ratio")
    assert found["figures"].keys() == {k for k in before["figures"] if k.startswith(of_presence)}
    after = json.loads((folder / "evaluation.json").read_text())
    assert after["figures"] == before["figures"]
    assert set(after["final"]["measures"]) == set(before["final"]["measures"])
    fedgan.evaluate(folder, only=["presence"], samples=12)  # of other images
    after = json.loads((folder / "evaluation.json").read_text())
    assert after["figures"].keys() == found["figures"].keys()
    assert [one["figures"] for one in after["earlier"]] == [before["figures"]]
    fedgan.evaluate(folder, only=["fidelity"])
    again = json.loads((folder / "evaluation.json").read_text())
    assert again["figures"] == before["figures"]
    assert [one["final"]["samples"] for one in again["earlier"]] == [12]


def test_a_measure_taken_anew_leaves_none_of_its_old_figures(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    choice = "--evaluate.measures=[{name: fidelity, init_args: {infinity: true}}]"
    fedgan.evaluate(folder, overrides=[choice])
    assert "fd_domain_infinity" in json.loads((folder / "evaluation.json").read_text())["figures"]
    fedgan.evaluate(folder, only=["fidelity"])
    found = json.loads((folder / "evaluation.json").read_text())
    assert "fd_domain_infinity" not in found["figures"]
    assert "presence" in found["figures"]


def test_a_checkpoint_is_judged_by_the_rounds_up_to_it(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    first = folder / "checkpoints" / "round_0001"
    found = fedgan.evaluate(folder, only=["detection"], checkpoint=first)
    assert found["details"]["detection"]["benign_client_rounds"] == 2


def test_an_override_may_hold_spaces(trained, capsys):
    line = "--evaluate.encoder={name: domain, init_args: {steps: 4}}"
    assert main(["evaluate", str(trained), line, "--only=fidelity"]) == 0
    assert '"steps": 4' in (trained / "evaluation.json").read_text()


def test_what_a_config_says_of_a_measure_or_encoder_stays_in_force(trained):
    encoder = fedgan.evaluate(trained, only=["fidelity"], encoder="domain")["final"]["encoders"][0]
    assert encoder["steps"] == 3


def test_a_resume_drops_full_looks_of_rounds_that_are_played_again(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    for number in (2, 3):
        shutil.copy(
            folder / "evaluations" / "round_0001.json",
            folder / "evaluations" / f"round_{number:04}.json",
        )
    fedgan.resume(folder, checkpoint=folder / "checkpoints" / "round_0001")
    looks = ["round_0001.json", "watch_0002.json"]
    assert sorted(path.name for path in (folder / "evaluations").iterdir()) == looks
    (folder / "evaluations" / "round_0001.json").unlink()  # a stop came in the middle of the look
    fedgan.resume(folder, checkpoint=folder / "checkpoints" / "round_0001")
    assert sorted(path.name for path in (folder / "evaluations").iterdir()) == looks


def test_a_look_on_the_way_has_its_file_and_pictures(tiny, tmp_path):
    """In the form of a full look; the figures are metrics.csv's. A resume drops later ones."""
    folder = tmp_path / "run"
    changes = {"evaluate.every": 1, "evaluate.watch_measures": ["fidelity", "memory"]}
    fedgan.run(tiny({"run_dir": str(folder), **changes}))
    rows = read_table(folder / "metrics.csv")
    assert len(rows) == 2
    for row in rows:
        path = folder / "evaluations" / f"watch_{int(row['round']):04}.json"
        found = json.loads(path.read_text())
        assert found["round"] == int(row["round"])
        for name, value in found["figures"].items():
            assert float(row[name]) == pytest.approx(value)
        assert {"fidelity", "memory"} == set(found["details"]) == set(found["final"]["measures"])
        (picture,) = found["pictures"]["memory"]
        assert (path.parent / picture).is_file()
    (folder / "evaluations" / "watch_0002.json").write_text("{}")
    fedgan.resume(folder, checkpoint=folder / "checkpoints" / "round_0001")
    again = json.loads((folder / "evaluations" / "watch_0002.json").read_text())
    assert again["figures"] == found["figures"]
    assert len([*(folder / "evaluations").glob("watch_*.json")]) == 2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["evaluate"], "what? a run directory, or --images and --real"),
        (["evaluate", "x", "--images=y", "--real=z"], "what?"),
        (["evaluate", "--images=y"], "go together"),
        (["evaluate", "x", "--real=y"], "go together"),
        (["evaluate", "--images=y", "--real=z", "--checkpoint=best"], "--checkpoint is of a run"),
        (["evaluate", "x", "--out=y"], "--out is for --images"),
        (["evaluate", "{run}", "--only=fidelty"], "fidelity"),
        (["evaluate", "{run}", "--only=fidelity,fidelity"], "fidelity is named twice"),
        (["evaluate", "{run}", "--encoder=domain,domain"], "domain is named twice"),
        (["evaluate", "--images=nowhere", "--real={run}/config.yaml"], "nowhere does not exist"),
        (["evaluate", "--images={run}", "--real=brains"], "brain-mri"),
        (["evaluate", "{run}", "--evaluate.rounds=[3]"], "evaluate.rounds: 3 is no round"),
        (["generate", "{run}", "--out=x.npz", "--samples=3", "--rebalance"], "either"),
        (["generate", "{run}", "--out=x.npz"], "--samples or --rebalance"),
        (["generate", "{run}", "--out=x.npz", "--samples=0"], "at least 1"),
        (["generate", "{run}", "--out=x.npz", "--rebalance"], "no class is smaller"),
    ],
)
def test_what_evaluate_and_generate_refuse(trained, capsys, argv, words):
    assert main([part.format(run=trained) for part in argv]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("suffix", ["npz", "folder"])
def test_generated_images_come_out_and_can_be_measured(trained, tmp_path, capsys, suffix):
    out = tmp_path / ("made.npz" if suffix == "npz" else "made")
    assert main(["generate", str(trained), f"--out={out}", "--samples=20"]) == 0
    assert "20 images" in capsys.readouterr().out
    images, labels = load_given(out, 1, 16, ("class 0", "class 1"))
    assert (images.shape, set(labels.tolist())) == ((20, 1, 16, 16), {0, 1})
    real = f"--real={trained / 'config.yaml'}"
    found = tmp_path / "found.json"
    assert main(["evaluate", f"--images={out}", real, f"--out={found}", "--samples=8"]) == 0
    assert main(["generate", str(trained), f"--out={out}", "--samples=20"]) == 2
    assert "exists" in capsys.readouterr().err


def test_as_many_are_generated_as_smaller_classes_lack(tiny, tiny_npz, tmp_path):
    with np.load(tiny_npz) as arrays:
        uneven = dict(arrays)
    keep = np.r_[0:48:2, 1:24:2]  # 24 of class 0, 12 of class 1
    for what in ("images", "labels"):
        uneven[f"train_{what}"] = uneven[f"train_{what}"][keep]
    np.savez(tmp_path / "uneven.npz", **uneven)
    changes = {"data.path": str(tmp_path / "uneven.npz"), "federation.rounds": 1}
    fedgan.run(tiny({**changes, "run_dir": str(tmp_path / "run")}))
    counts = fedgan.generate(tmp_path / "run", tmp_path / "more.npz", rebalance=True)
    assert counts == {"class 0": 0, "class 1": 12}
    with np.load(tmp_path / "more.npz") as arrays:
        assert arrays["labels"].tolist() == [1] * 12
    again = fedgan.generate(tmp_path / "run", tmp_path / "again.npz", rebalance=True)
    assert again == counts
    with np.load(tmp_path / "again.npz") as other, np.load(tmp_path / "more.npz") as arrays:
        assert (other["images"] == arrays["images"]).all()


@pytest.mark.parametrize("labelled", [True, False])
def test_somebody_elses_images_are_measured(trained, tiny_npz, tmp_path, capsys, labelled):
    with np.load(tiny_npz) as arrays:
        images, labels = arrays["train_images"], arrays["train_labels"]
    given = {"images": images, **({"labels": labels} if labelled else {})}
    np.savez(tmp_path / "images.npz", **given)
    out = tmp_path / "found.json"
    where = [f"--images={tmp_path / 'images.npz'}", f"--real={trained / 'config.yaml'}"]
    assert main(["evaluate", *where, f"--out={out}", "--samples=24"]) == 0
    assert "these images, seen by domain" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["final"]["samples"] == 24
    assert found["figures"]["presence"] == 0.0
    generated = json.loads((trained / "summary.json").read_text())
    assert found["figures"]["fd_domain"] < generated["figures"]["fd_domain"] / 2
