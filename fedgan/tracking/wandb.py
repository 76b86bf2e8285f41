"""A training run on Weights & Biases."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgan.settings import Wandb
from fedgan.tracking import wandb_session as session
from fedgan.tracking.base import RoundRecord, RunInfo
from fedgan.tracking.evaluations import EVALUATION, FOLDER, TABLE, looked_at, read_evaluation
from fedgan.tracking.guard import Logger
from fedgan.tracking.pictures import sample_grid
from fedgan.tracking.records import CLIENTS, METRICS, read_table
from fedgan.tracking.series import (
    CHARTED,
    lines,
    parsed,
    scalars,
    scalars_of_tables,
    thinned,
    weights_picture,
)

DISTANCES = ("fd_", "kd_")
BETTER_HIGH = ("is_", "coverage_", "recall_", "precision_", "density_")
OF_REAL_IMAGES = ("_floor", "_real", "_low", "_high", "_std")
"""Endings of what stands beside a figure: its best is no merit."""
_MARKED = re.compile(r"(evaluation|round_\d+)_[0-9a-f]{6}_")
"""Of a picture's file beside an evaluation file: what stands before its own name."""
TAGS = ("attack", "defense", "data", "seed")


class WandbTracker(Logger):
    """Config, a row a round, every client's curves in one chart a loss, weights as a stacked area,
    the table of clients, samples, pictures of evaluations, and the final figures.

    The charts hold all rounds so far. They are drawn at a look only when there are twice as many
    rounds as in the last ones, and at the end, so that all of them together grow with the rounds
    and not with their square. Losses and scores are W&B's own `wandb.plot.line_series`, which needs
    no account to be logged; there is no such preset for a stacked area (a custom Vega chart lives
    in an account), so that weights are a picture, beside their scalars and table.
    """

    def __init__(self, settings: Wandb) -> None:
        self.settings = settings
        self._session: session.Session | None = None
        self._whole = False
        self._defined: set[str] = set()
        self._pending: dict[str, Any] = {}
        self._charted = 0

    def on_start(self, info: RunInfo) -> None:
        self._info = info
        now = self._begin(info.run_dir, info.labels)
        now.logger.log_hyperparams({**asdict(info.settings), "labels": self._labels})
        if now.step < 0:
            now.log({"clients": _client_table(info)}, step=0)
        if info.first_round > 1:
            self._catch_up()

    def on_evaluation(
        self, round: int, evaluation: dict[str, Any], pictures: dict[str, Tensor]
    ) -> None:
        # They go into the next row: this round's has been sent, and the next one's step is taken.
        self._pending = {**_images(pictures, f"round {round}"), **self._full(round, evaluation)}

    def on_round(self, record: RoundRecord) -> None:
        import wandb

        values = self._of_round(scalars(record))
        for one in record.verdict.exhibits:
            picture = one.picture.permute(1, 2, 0).numpy()
            values[f"exhibits/client {one.client}"] = wandb.Image(picture, caption=one.words)
        if record.samples is not None:
            grid = sample_grid(record.samples, self._info.classes)
            values["samples"] = wandb.Image(grid, caption=f"round {record.round}")
            last = record.round == self._info.settings.federation.rounds
            if last or record.round >= 2 * self._charted:
                self._charted = record.round
                values |= self._charts()
        self._open.log(values, step=record.round)

    def on_end(self, summary: dict[str, Any]) -> None:
        rows = thinned(read_table(self._info.run_dir / CLIENTS))
        values: dict[str, Any] = {"client rounds": _table(rows)} if rows else {}
        told = read_evaluation(self._info.run_dir / EVALUATION)
        shown = [file for files in told.get("pictures", {}).values() for file in files]
        values |= _images_of(self._info.run_dir, shown, "at the end") | self._pending
        if values:
            # Later than all rounds, even where the last ones were sent before a resume.
            self._open.log({**values, "round": summary["rounds"]})
        final = {f"final/{name}": value for name, value in summary["figures"].items()}
        self._open.run.summary.update({**final, "generator_sha256": summary["generator_sha256"]})
        self._whole = True

    def on_later_evaluation(
        self,
        run_dir: Path,
        labels: dict[str, Any],
        evaluation: dict[str, Any],
        pictures: dict[str, Tensor],
    ) -> None:
        now, round = self._begin(run_dir, labels), evaluation["round"]
        images = _images(pictures, f"evaluated after round {round}")
        if images:
            now.log({**images, "round": round})
        figures = {f"evaluated/{name}": value for name, value in evaluation["figures"].items()}
        now.run.summary.update({**figures, "evaluated/round": round})
        self._whole = True

    def close(self) -> None:
        if self._session is None:
            return
        patience = session.LONGEST_FINISH if self._whole else session.SHORT_FINISH
        try:
            if hasattr(self, "_info") and self._info.first_round > 1:
                self._mend_summary()
        finally:
            self._session.finish(patience)

    @property
    def _open(self) -> session.Session:
        assert self._session is not None  # the guard tells nothing more after a failed start
        return self._session

    def _begin(self, run_dir: Path, labels: dict[str, Any]) -> session.Session:
        settings = self.settings
        own = [f"{key}: {labels[key]}" for key in TAGS if key in labels]
        # A grid's own labels, which its tags tell, rather than those that the config alone gives.
        pairs = [tag.partition(": ") for tag in settings.tags]
        told: dict[str, Any] = {key: value for key, _, value in pairs if key in TAGS and value}
        if "seed" in told:  # a number, as in the config of a run that is no cell
            told["seed"] = parsed(told["seed"])
        self._labels = {**labels, **told}
        self._session = session.Session(
            settings,
            run_dir,
            name=settings.name or run_dir.name,
            job_type=settings.job_type or labels.get("arm"),
            tags=settings.tags or own,
        )
        self._session.run.define_metric("round", hidden=True)
        self._session.run.define_metric("*", step_metric="round")
        return self._session

    def _define(self, key: str) -> None:
        """What W&B's summary keeps of a figure, its last value where nothing else is said; and what
        it is drawn over, if not `round` as all else."""
        kept, full = kept_in_summary(key), key.startswith("full/")
        if key not in self._defined and (full or kept != ("last",)):
            step = "full/round" if full else "round"
            self._open.run.define_metric(key, step_metric=step, summary=",".join(kept))
        self._defined.add(key)

    def _full(self, round: int, evaluation: dict[str, Any]) -> dict[str, Any]:
        """Figures of a full look."""
        figures = {f"full/{name}": value for name, value in evaluation["figures"].items()}
        for key in figures:
            self._define(key)
        return {**figures, "full/round": round}

    def _of_round(self, figures: dict[str, Any]) -> dict[str, Any]:
        """A round's row: its own figures, and what a full look has found since the last one."""
        for key in figures:
            self._define(key)
        values = {**figures, **self._pending}
        self._pending = {}
        return values

    def _catch_up(self) -> None:
        """Sends rounds before a resume that a process has not sent, or that W&B may not have had on
        the disk when the process was killed; those that are played again come by themselves."""
        import wandb

        run_dir, first = self._info.run_dir, self._info.first_round
        told = scalars_of_tables(read_table(run_dir / METRICS), read_table(run_dir / CLIENTS))
        for round in range(max(1, self._open.step + 1), first + 1):
            folder = run_dir / FOLDER
            if look := read_evaluation(folder / looked_at(round - 1)):
                shown = [file for files in look.get("pictures", {}).values() for file in files]
                self._pending = _images_of(folder, shown, f"round {round - 1}")
                self._pending |= self._full(round - 1, look)
            if round < first and round in told:
                values = self._of_round(told[round])
                samples = run_dir / "samples" / f"round_{round:04d}.png"
                if samples.is_file():
                    values["samples"] = wandb.Image(str(samples), caption=f"round {round}")
                self._open.log(values, step=round)

    def _charts(self) -> dict[str, Any]:
        import wandb

        rows, malicious = read_table(self._info.run_dir / CLIENTS), self._info.malicious
        if not rows:
            return {}
        found: dict[str, Any] = {}
        rows = thinned(rows)
        for key, title in CHARTED.items():
            names, rounds, values = lines(rows, key, malicious)
            if names:
                found[f"charts/{key}"] = wandb.plot.line_series(
                    rounds, values, keys=names, title=title, xname="round"
                )
        shares = weights_picture(rows, malicious)
        found["charts/weights"] = wandb.Image(shares, caption="weights in the aggregate")
        return found

    def _mend_summary(self) -> None:
        """Least and greatest values over all rounds: W&B sees those since the resume alone."""
        run_dir = self._info.run_dir
        full = extremes(read_table(run_dir / TABLE))
        self._open.run.summary.update(
            extremes(read_table(run_dir / METRICS))
            | {f"full/{key}": kept for key, kept in full.items()}
        )


def kept_in_summary(key: str) -> tuple[str, ...]:
    """What of a figure's values over the rounds goes into W&B's summary: the least of a distance,
    the greatest of a score, the last and the greatest presence, the last of all else.

    >>> kept_in_summary("fd_domain"), kept_in_summary("recall_domain"), kept_in_summary("presence")
    (('min',), ('max',), ('last', 'max'))
    >>> kept_in_summary("fd_domain_floor"), kept_in_summary("g_loss/client 1")
    (('last',), ('last',))
    """
    figure = key.removeprefix("full/")
    if "/" in figure or figure.endswith(OF_REAL_IMAGES):
        return ("last",)
    if figure.startswith(DISTANCES) or figure.split("_")[0] in ("fid", "kid"):
        return ("min",)
    if figure.startswith(BETTER_HIGH) or figure == "is":
        return ("max",)
    return ("last", "max") if figure.startswith("presence") else ("last",)


def extremes(rows: Sequence[dict[str, str]]) -> dict[str, dict[str, float]]:
    """Of the rows of metrics.csv, what the summary keeps of figures beside their last value.

    >>> extremes([{"fd_x": "3", "presence": "0.5"}, {"fd_x": "4", "presence": ""}])
    {'fd_x': {'min': 3.0}, 'presence': {'last': 0.5, 'max': 0.5}}
    """
    found: dict[str, dict[str, float]] = {}
    for key in rows[-1] if rows else ():
        kept = kept_in_summary(key)
        values = [float(row[key]) for row in rows if row.get(key)]
        values = [value for value in values if math.isfinite(value)]
        if values and kept != ("last",):
            of = {"min": min(values), "max": max(values), "last": values[-1]}
            found[key] = {name: of[name] for name in kept}
    return found


def _client_table(info: RunInfo) -> Any:
    import wandb

    table = wandb.Table(["client", "malicious", "images", *info.classes])
    for client, counts in enumerate(info.counts):
        table.add_data(client, client in info.malicious, info.n_images[client], *counts)
    return table


def _table(rows: Sequence[dict[str, str]]) -> Any:
    import wandb

    return wandb.Table(list(rows[0]), [[_cell(text) for text in row.values()] for row in rows])


def _cell(text: str) -> Any:
    """A cell of a CSV file; None, W&B's empty cell, for what is empty or not finite: a column is of
    one type."""
    value = parsed(text)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return None if value == "" else value


def _images(pictures: dict[str, Tensor], caption: str) -> dict[str, Any]:
    import wandb

    return {
        name: wandb.Image(picture.permute(1, 2, 0).numpy(), caption=f"{name}, {caption}")
        for name, picture in pictures.items()
    }


def _images_of(folder: Path, names: Iterable[str], when: str) -> dict[str, Any]:
    """PNG files beside an evaluation file, by the name of the picture."""
    import wandb

    # the file's own name, a mark of what was measured, the picture's own name
    found = {_MARKED.sub("", name).removesuffix(".png"): name for name in names}
    return {
        key: wandb.Image(str(folder / name), caption=f"{key}, {when}")
        for key, name in found.items()
        if (folder / name).is_file()
    }
