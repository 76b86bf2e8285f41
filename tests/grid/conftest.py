"""A tiny grid in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PATCH = {"attack.name": "patch", "attack.clients": [0], "attack.init_args": {"size": 2}}
MEDIAN = {"defense.name": "median"}


@pytest.fixture
def write_grid(
    tiny: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Writes base.yaml and mine.yaml into the working directory; `write_grid(seeds=[1, 2])` changes
    keys of the grid, None leaves one out."""
    monkeypatch.chdir(tmp_path)

    def write(in_base: dict[str, Any] | None = None, **changes: Any) -> Path:
        values = tiny({"evaluate.every": 1, **(in_base or {})})
        Path("base.yaml").write_text(yaml.safe_dump(values))
        grid = {"base": "base.yaml", "attacks": {"patch": PATCH}, "defenses": {"median": MEDIAN}}
        grid = {**grid, "seeds": [1], **changes}
        kept = {key: value for key, value in grid.items() if value is not None}
        Path("mine.yaml").write_text(yaml.safe_dump(kept))
        return Path("mine.yaml")

    return write
