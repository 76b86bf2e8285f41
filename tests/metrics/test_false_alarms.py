"""Every detector on what an unpoisoned generator draws: it must not find what nobody stamped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fedgan
from fedgan.cli import main

KINDS = {
    "a pixel or four": ("patch", {"area": 0.001}),
    "patch": ("patch", {}),
    "large patch": ("patch", {"area": 0.06}),
    "bars": ("dba", {}),
    "blended": ("blended", {}),
    "smooth": ("blended", {"pattern": "smooth"}),
    "sig": ("sig", {}),
    "wanet": ("wanet", {}),
}
ROUNDS = (2, 8)
"""Of 16 steps at each of four clients: one that has hardly begun, and one that draws brains."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation without an attacker, on brain slices; 500 images of each of `ROUNDS`."""
    folder = tmp_path_factory.mktemp("clean") / "run"
    fedgan.run(
        {
            "run_dir": str(folder),
            "data": {
                "name": "brain-mri",
                "size": 32,
                "init_args": {"train": 1600, "val": 200, "test": 200},
            },
            "federation": {"clients": 4, "rounds": max(ROUNDS), "local_steps": 16},
            "model": {"init_args": {"width": 12}},
            "evaluate": {"every": 0, "samples": 8, "watch_samples": 8, "measures": ["presence"]},
            "checkpoint": {"every": 1, "keep": max(ROUNDS)},
            "cluster": {"accelerator": "cpu", "threads": 1},
        }
    )
    for number in ROUNDS:
        checkpoint = folder / "checkpoints" / f"round_{number:04d}"
        words = [f"--checkpoint={checkpoint}", f"--out={folder.parent / str(number)}.npz"]
        assert main(["generate", str(folder), "--samples=500", *words]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", ROUNDS)
@pytest.mark.parametrize("kind", KINDS)
def test_nobody_stamped_it(run: Path, tmp_path: Path, kind: str, number: int) -> None:
    name, arguments = KINDS[kind]
    out = tmp_path / "found.json"
    words = [
        "evaluate",
        f"--images={run.parent / str(number)}.npz",
        f"--real={run / 'config.yaml'}",
        "--only=presence",
        f"--attack.name={name}",
        f"--attack.init_args={json.dumps(arguments)}",
        "--attack.clients=[0,1]",
        f"--out={out}",
    ]
    assert main(words) == 0
    found = json.loads(out.read_text())
    details = found["details"]["presence"]
    assert details["trigger"] == name
    assert details["detector"]["auroc"] >= 0.999
    if kind == "bars" and number == min(ROUNDS):  # the one that is known not to keep to it
        assert any("after one round" in words for words in details["notes"])
        return
    shares = {key: share for key, share in found["figures"].items() if key.startswith("presence")}
    for key in ("presence", *(key for key in shares if key.startswith("presence_part"))):
        assert shares[key] <= 0.01, key
