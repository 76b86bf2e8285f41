"""What a defence shows of the clients that it accuses: exhibits.csv, and a picture each."""

from __future__ import annotations

from functools import partial

from fedgan.cache import write_atomically
from fedgan.tracking.base import Observer, RoundRecord, RunInfo
from fedgan.tracking.evaluations import write_png
from fedgan.tracking.records import Table

EXHIBITS = "exhibits"
"""Folder of the pictures, and the table's name."""


class Exhibits(Observer):
    """Writes exhibits.csv, a row for each time that a client falls in standing, and the pictures
    that it names. A run without any has neither."""

    def on_start(self, info: RunInfo) -> None:
        self._run_dir = info.run_dir
        self._table = Table(info.run_dir / f"{EXHIBITS}.csv")
        if self._table.path.is_file():
            self._table.keep(lambda row: int(row["round"]) < info.first_round)

    def on_round(self, record: RoundRecord) -> None:
        rows = []
        for one in record.verdict.exhibits:
            name = f"{EXHIBITS}/round_{record.round:04d}_client_{one.client}.png"
            (self._run_dir / EXHIBITS).mkdir(exist_ok=True)
            write_atomically(self._run_dir / name, partial(write_png, one.picture))
            row = {"round": record.round, "client": one.client, "picture": name, "words": one.words}
            rows.append(row)
        if rows:
            self._table.append(rows)

    def sync(self) -> None:
        self._table.sync()
