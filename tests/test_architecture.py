"""The arrows of the house point down only, and no room is too large."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "fedgan"
LAYERS = [  # from the top; a module imports from its own row or from those below
    ["__main__"],
    ["cli"],
    ["grid"],
    ["experiment"],
    ["report"],
    ["comparison"],
    ["recoveries"],
    ["ranks"],
    ["runs"],
    ["rundir", "slurm", "detect"],
    ["scenes", "keeping"],
    ["summary", "assembly"],
    ["plan"],
    ["choices"],
    ["federation"],
    ["clients"],
    ["local", "evaluation", "malice"],
    ["generated"],
    ["client", "server", "cluster", "checkpoint"],
    ["lifeline", "fabric", "numerics", "probe"],
    ["meeting"],
    ["attacks", "defenses", "metrics", "tracking", "devices", "checks", "config"],
    ["launcher"],
    ["models", "data", "updates", "reports", "images", "signals", "evidence"],
    ["shards", "vectors"],
    ["settings", "errors", "seeding", "cache", "components", "precision"],
]
LIGHT = ["cli", "experiment", "plan", "rundir", "summary", "checkpoint", "devices", "config"]
LIGHT += ["launcher", "slurm", "detect"]
"""Importing these imports no Lightning, which takes seconds; type checkers aside."""
ROOMS = ["attacks", "data", "defenses", "metrics", "models"]
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(module):
    """`attacks` of `fedgan.attacks.patch`; `` of `fedgan` itself."""
    return [*module.split("."), ""][1]


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """The modules of fedgan that a file imports, wherever in the file, types included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "fedgan")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fedgan":
            inside = PACKAGE.joinpath(*node.module.split(".")[1:])
            for a in node.names:
                deeper = (inside / a.name).is_dir() or (inside / f"{a.name}.py").is_file()
                yield f"{node.module}.{a.name}" if deeper else node.module


def arrows():
    for path in FILES:
        here = module_of(path)
        if here != "fedgan":  # the package itself names its public calls
            for there in imports(path):
                yield here, there


def level(room):
    return next(i for i, row in enumerate(LAYERS) if room in row)


def test_every_module_has_its_layer():
    known = {name for row in LAYERS for name in row}
    assert {room_of(module_of(path)) for path in FILES} - {""} == known


def test_arrows_point_down():
    wrong = [
        f"{here} > {there}"
        for here, there in arrows()
        if room_of(there) and level(room_of(there)) < level(room_of(here))
    ]
    assert not wrong


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_do_not_know_one_another(room):
    others = set(ROOMS) - {room}
    wrong = [f"{h} > {t}" for h, t in arrows() if room_of(h) == room and room_of(t) in others]
    assert not wrong


def test_nothing_imports_the_command_line():
    users = {here for here, there in arrows() if room_of(there) == "cli"}
    assert {here for here in users if room_of(here) != "cli"} <= {"fedgan.__main__"}


def test_light_modules_do_not_import_lightning():
    script = f"""
import importlib, sys
for module in {LIGHT!r}:
    importlib.import_module("fedgan." + module)
    assert "lightning" not in sys.modules, module
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_no_module_imports_itself_in_a_ring():
    graph: dict[str, set[str]] = {}
    for here, there in arrows():
        graph.setdefault(here, set()).add(there)

    def reaches(start, here, seen):
        for there in graph.get(here, ()):
            if there == start or (there not in seen and reaches(start, there, seen | {there})):
                return True
        return False

    assert not [module for module in graph if module != "fedgan" and reaches(module, module, set())]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_file_is_over_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
