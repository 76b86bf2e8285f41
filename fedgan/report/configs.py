"""How the runs were made: the config, what differs from run to run, and what to type."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedgan.rundir import CONFIG
from fedgan.runs import FROM_COMMAND_LINE, Run

GRID_FILE = "grid.yaml"


def made_by(runs: Sequence[Run], grid: Path | None) -> dict[str, Any]:
    """Commands and texts: `commands`, `grid` (the grid file, or None), `config` (of the first run),
    `name` (its run), `differences` (a name and its changes, of each run) and `versions`."""
    first = runs[0]
    base = _flat(asdict(first.settings))
    return {
        "commands": _commands(first, grid),
        "grid": _text(grid / GRID_FILE) if grid is not None else None,
        "name": first.path.name,
        "config": _text(first.path / CONFIG) or "",
        "differences": [(run.path.name, _changes(base, run)) for run in runs[1:]],
        "versions": first.summary.get("versions", {}),
        "device": first.summary.get("device", ""),
    }


def _commands(first: Run, grid: Path | None) -> list[str]:
    if grid is not None and (grid / GRID_FILE).is_file():
        lines = (_text(grid / GRID_FILE) or "").splitlines()
        own = [line.removeprefix(FROM_COMMAND_LINE) for line in lines if _is_override(line)]
        words = " ".join(shlex.quote(word) for word in [GRID_FILE, *own])
        return [f"fedgan grid {words}", "fedgan report GRID_DIR"]
    name = shlex.quote(f"runs/{first.path.name}")
    return [f"fedgan train {CONFIG} --run_dir={name}", f"fedgan report {name}"]


def _is_override(line: str) -> bool:
    return line.startswith(FROM_COMMAND_LINE)


def _changes(base: dict[str, Any], run: Run) -> str:
    """What a run has else than the first: `seed=2, attack.poison_rate=0.0`."""
    own = _flat(asdict(run.settings))
    keys = [key for key in {**base, **own} if base.get(key) != own.get(key) and key != "run_dir"]
    return ", ".join(f"{key}={own.get(key)}" for key in keys) or "nothing"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted keys.

    >>> _flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
