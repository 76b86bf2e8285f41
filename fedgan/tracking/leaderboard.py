"""The leaderboard of a comparison on Weights & Biases: a table and an artifact."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgan.settings import Wandb
from fedgan.tracking.guard import attempt
from fedgan.tracking.wandb_session import LONGEST_FINISH, Session

LEADERBOARD = "leaderboard"


def log_leaderboard(
    rows: Sequence[Mapping[str, Any]],
    files: Sequence[Path],
    settings: Wandb,
    folder: Path | None = None,
) -> bool:
    """Logs a comparison's table, and its files as an artifact, in a run of job type `leaderboard`.

    The run is the comparison's own: the next call for the same folder adds a new version of table
    and artifact to it. Nothing is done where `settings` name no project or W&B is disabled.
    Whatever goes wrong is one warning: this never raises.

    Args:
        rows: plain values by column; a row may lack some. A column of numbers and words is all
            words, as W&B's columns are of one type.
        files: what the comparison has written, as leaderboard.csv.
        settings: where to; `group` is the grid.
        folder: W&B's files, and the run's id, go there; the first file's folder if not given.

    Returns:
        Whether it was logged.
    """
    if settings.project is None or settings.mode == "disabled" or not (rows or files):
        return False
    place = folder or (files[0].parent if files else Path.cwd())
    return attempt("W&B's leaderboard", lambda: _log(rows, files, settings, place))


def _log(
    rows: Sequence[Mapping[str, Any]], files: Sequence[Path], settings: Wandb, folder: Path
) -> None:
    import wandb

    for file in files:
        file.open("rb").close()  # before there is a run on W&B without them
    session = Session(
        settings,
        folder,
        name=f"{settings.group or folder.name}: {LEADERBOARD}",
        job_type=LEADERBOARD,
        tags=settings.tags,
    )
    try:
        if rows:
            columns, cells = table(rows)
            session.log({LEADERBOARD: wandb.Table([*columns], cells)})
        artifact = wandb.Artifact(f"{LEADERBOARD}-{session.run.id}", type=LEADERBOARD)
        for file in files:
            artifact.add_file(str(file))
        if files:
            session.run.log_artifact(artifact)
    finally:
        session.finish(LONGEST_FINISH)


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Columns and cells, each column of one type; None where there is nothing, or no finite number.

    >>> table([{"defence": "krum", "fd": 3.5}, {"defence": "none", "fd": 4, "seeds": 2}])
    (['defence', 'fd', 'seeds'], [['krum', 3.5, None], ['none', 4.0, 2.0]])
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [_column([row.get(key) for row in rows]) for key in columns]
    return columns, [list(row) for row in zip(*cells, strict=True)]


def _column(values: Sequence[Any]) -> list[Any]:
    there = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in there):
        return list(values)
    if all(isinstance(value, (int, float)) for value in there):
        numbers = [None if value is None else float(value) for value in values]
        return [n if n is not None and math.isfinite(n) else None for n in numbers]
    return [None if value is None else str(value) for value in values]
