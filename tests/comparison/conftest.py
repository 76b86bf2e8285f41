"""Made-up runs: as values, and as run directories written by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from fedgan.runs import Labels, Run
from fedgan.settings import Attack, Defense, Experiment

DETECTION = {
    "auroc": 0.9,
    "true_positive_rate": 0.8,
    "false_positive_rate": 0.1,
    "benign_weight_lost": 0.05,
    "malicious_weight_lost": 0.7,
    "rounds_until_silenced": 3.0,
}


def make_summary(attack, fd, presence, samples=100, fingerprint="f", encoder="domain", **figures):
    own = {
        f"fd_{encoder}": fd,
        f"fd_{encoder}_floor": 1.0,
        "presence": presence,
        "presence_low": max(0.0, presence - 0.1),
        "presence_high": min(1.0, presence + 0.1),
        **figures,
    }
    return {
        "figures": {name: value for name, value in own.items() if value is not None},
        "final": {
            "encoders": [{"name": encoder, "fingerprint": fingerprint}],
            "samples": samples,
            "measures": ["fidelity", "presence"],
        },
        "detection": {**DETECTION, "true_positive_rate": None if attack == "none" else 0.8},
        "rounds": 3,
        "generator_sha256": "abc",
    }


@pytest.fixture
def make_run():
    """A run as a value: `make_run("patch", "krum", 2, fd=31.0)`."""

    def make(attack, defense, seed, fd, presence=0.0, data="mri", settings=None, **changes):
        experiment = settings or Experiment(
            seed=seed,
            attack=Attack(name="patch" if attack == "none" else attack, poison_rate=1.0),
            defense=Defense(name=defense),
        )
        experiment.federation.rounds = 3
        labels = Labels(data, attack, defense, seed)
        path = Path("-".join(map(str, labels)))
        summary = make_summary(attack, fd, presence, **changes)
        return Run(path, labels, experiment, summary, {}, [], [])

    return make


@pytest.fixture
def write_run(tmp_path):
    """A run directory on disk: `write_run("runs/a", "patch", "krum", 2, fd=31.0)`."""

    def write(name, attack, defense, seed, fd, presence=0.0, config=None, **changes):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        nested = {
            "seed": seed,
            "federation": {"rounds": 3},
            "attack": {
                "name": "patch" if attack == "none" else attack,
                "poison_rate": 0.0 if attack == "none" else 1.0,
            },
            "defense": {"name": defense},
        }
        for group, values in (config or {}).items():
            nested[group] = {**nested.get(group, {}), **values}
        (folder / "config.yaml").write_text(yaml.safe_dump(nested))
        summary = make_summary(attack, fd, presence, **changes)
        (folder / "summary.json").write_text(json.dumps(summary))
        told = {key: summary[key] for key in ("figures", "final", "generator_sha256")}
        (folder / "evaluation.json").write_text(json.dumps(told))
        for table, rows in (
            ("metrics.csv", [{"round": r, "g_loss": 1.0 / r} for r in (1, 2, 3)]),
            ("clients.csv", [{"round": 1, "client": 0, "malicious": True, "flagged": False}]),
        ):
            with (folder / table).open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        return folder

    return write


@pytest.fixture
def write_grid(tmp_path, write_run):
    """A grid directory of a clean, an attacked and a defended cell of two seeds, in which one cell
    has failed."""
    cells = []
    for seed, shift in ((1, 0.0), (2, 1.0)):
        for attack, defense, fd in (
            ("none", "none", 10.0),
            ("patch", "none", 30.0),
            ("none", "krum", 12.0),
            ("patch", "krum", 15.0),
        ):
            name = f"mri__{attack}__{defense}__seed-{seed}"
            state = "finished"
            if (attack, defense, seed) == ("patch", "krum", 2):
                state = "failed"
            else:
                write_run(f"grid/cells/{name}", attack, defense, seed, fd + shift)
            labels = {"data": "mri", "attack": attack, "defense": defense, "seed": seed}
            run_dir = f"cells/{name}"
            cells.append({"name": name, "labels": labels, "run_dir": run_dir, "state": state})
    (tmp_path / "grid" / "grid.json").write_text(json.dumps(cells))
    return tmp_path / "grid"
