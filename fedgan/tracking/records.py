"""The run directory's tables: metrics.csv, a row a round; clients.csv, a row a client a round."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

from fedgan.cache import write_atomically
from fedgan.tracking.base import Observer, RoundRecord, RunInfo

METRICS, CLIENTS = "metrics.csv", "clients.csv"


class Records(Observer):
    """Writes both tables as the rounds go by; after a resume it first drops the rows of the rounds
    that are played again."""

    def on_start(self, info: RunInfo) -> None:
        from lightning.fabric.loggers import CSVLogger

        before = read_table(info.run_dir / METRICS)
        self._clients = info.run_dir / CLIENTS
        kept = [row for row in read_table(self._clients) if int(row["round"]) < info.first_round]
        if kept:
            write_atomically(self._clients, lambda beside: _write_rows(beside, kept))
        else:
            self._clients.unlink(missing_ok=True)

        run_dir = info.run_dir
        self._metrics = CSVLogger(run_dir.parent, run_dir.name, "", flush_logs_every_n_steps=1)
        with warnings.catch_warnings():
            # The run directory is never empty, and its metrics.csv is written anew from `before`.
            warnings.filterwarnings("ignore", message=".*exists and is not empty.*")
            _ = self._metrics.experiment
        for row in before:
            step = int(row.pop("step"))
            if step < info.first_round:
                filled = {key: value for key, value in row.items() if value != ""}
                self._metrics.log_metrics(filled, step)  # type: ignore[arg-type]

    def on_round(self, record: RoundRecord) -> None:
        self._metrics.log_metrics(dict(record.scalars()), record.round)
        rows = record.client_rows()
        fresh = not self._clients.exists()
        with self._clients.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            if fresh:
                writer.writeheader()
            writer.writerows(rows)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file as dictionaries of strings; none where there is no file.

    A last line that was torn by a crash is left out.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    return list(csv.DictReader(lines))


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
