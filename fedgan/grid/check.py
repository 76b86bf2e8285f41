"""A grid checked whole before anything of it is started."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import asdict

from fedgan.data.base import Dataset, Source
from fedgan.data.device import images_in_round
from fedgan.errors import UserError
from fedgan.grid.cells import Cell
from fedgan.plan import Plan, load, make_plan
from fedgan.rundir import CONFIG, check_same_run
from fedgan.settings import Experiment


class NoDataError(UserError):
    """A cell's data set is not to be had on this machine now."""


class Planner:
    """Makes the plans of cells, and loads a data set once for all cells in a row that have it."""

    def __init__(self) -> None:
        self._key = ""
        self._dataset: Dataset | None = None
        self._absent: dict[str, UserError] = {}

    def __call__(self, cell: Cell, *, anew: bool = False) -> Plan:
        """The plan of a cell. Raises `UserError` where it cannot be trained, or where its run
        directory holds a run of other settings, unless that is trained `anew`."""
        try:
            plan = make_plan(copy.deepcopy(cell.experiment), self._load)
            if not anew and (cell.run_dir / CONFIG).is_file():
                check_same_run(cell.run_dir, plan.settings)
        except UserError as error:
            raise type(error)(f"cell {cell.name}: {error}") from None
        return plan

    def _load(self, source: Source, settings: Experiment) -> Dataset:
        what = json.dumps(asdict(settings.data), default=str)
        if what in self._absent:  # a download is not tried again for each cell
            raise self._absent[what]
        key = f"{what} {settings.seed}"
        if key != self._key or self._dataset is None:
            self._dataset = None  # make room first
            try:
                self._dataset, self._key = load(source, settings), key
            except UserError as error:
                self._absent[what] = NoDataError(str(error))
                raise self._absent[what] from None
        return self._dataset


def check(cells: Iterable[Cell], anew: Iterable[Cell]) -> None:
    """Raises `UserError` for the first cell that cannot be trained; see `Planner`."""
    plan, names = Planner(), {cell.name for cell in anew}
    for cell in cells:
        plan(cell, anew=cell.name in names)


def images_to_train_on(plan: Plan) -> int:
    """How many images all clients together are shown over all rounds, drawn clients on average."""
    federation = plan.settings.federation
    share = federation.clients_in_round() / federation.clients
    a_round = sum(images_in_round(len(part), plan.settings) for part in plan.parts)
    return round(share * a_round * federation.rounds)
