"""A grid file and the cells that it stands for."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedgan import config
from fedgan.errors import UserError, did_you_mean
from fedgan.runs import NOBODY, UNDEFENDED, Labels, labels_of
from fedgan.settings import Experiment

KEYS = ("base", "grid_dir", "set", "data", "attacks", "defenses", "seeds")
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.,+=%-]*")
"""What a label may look like: it becomes part of the name of a folder."""
WHOLE = ("evaluate.encoder", "evaluate.watch_encoder", "attack.update", "attack.report")
"""Keys whose value may be a mapping that is taken as it is."""
CHOICE = ("name", "class_path", "rules")
"""Keys that choose a component; those beside them in CHOSEN mean nothing to another one."""
CHOSEN = (*CHOICE, "init_args", "discriminator")
NO_DEFENSE: dict[str, Any] = {
    "defense.name": "none",
    "defense.class_path": None,
    "defense.rules": [],
    "defense.discriminator": [],
    "defense.per_network": False,
}
NO_ATTACK = {"attack.poison_rate": 0.0}
OWN = ("seed", "run_dir")
"""Keys that the grid itself gives to each cell."""
LONGEST = 200
"""Letters of a cell's name: a file's has 255, with some around the cell's while it is written."""

Changes = dict[str, Any]
"""Dotted keys of the vocabulary and their values."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        labels: what tells it apart from the others.
        name: of its files in the grid's folder, made of its labels.
        experiment: all of its settings, as they are written before anything is filled in.
    """

    labels: Labels
    name: str
    experiment: Experiment

    @property
    def run_dir(self) -> Path:
        return Path(str(self.experiment.run_dir))


@dataclass(frozen=True)
class Grid:
    """A grid file, read.

    Attributes:
        path: the file.
        folder: the grid's directory; see `fedgan.grid.folder`.
        base: the config that all cells start from.
        changes: what all cells change.
        overrides: what the command line changes in all cells.
        data, attacks, defenses: what each label changes; attacks and defences begin with `none`.
        seeds: of every combination.
        cells: seed by seed.
    """

    path: Path
    folder: Path
    base: Path
    changes: Changes
    overrides: tuple[str, ...]
    data: dict[str, Changes]
    attacks: dict[str, Changes]
    defenses: dict[str, Changes]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...] = field(default=())


def read_grid(
    path: Path | str, grid_dir: Path | str | None = None, overrides: Sequence[str] = ()
) -> Grid:
    """The grid in a YAML file, with all of its cells.

    The keys: `base`, a config (beside the file, or one that ships); `set`, what all cells change;
    `data`, `attacks` and `defenses`, each a mapping of labels to what they change (keys of the
    vocabulary, nested or dotted); `seeds`, a list, [1] if not given; `grid_dir`, grids/ and the
    file's name if not given. The clean arm (`none` among the attacks: nobody poisons, but the base
    config's trigger is looked for, or what `none` itself changes) and the undefended arm (`none`
    among the defences: FedAvg) are always there, since every comparison needs them.

    Later changes win: the base, `set`, data, attack, defence, and `overrides` such as
    `--federation.rounds=2`, which may change all but what data, attacks and defences change. Raises
    `UserError` for a key or value that makes no sense, of the grid or of any cell.
    """
    found = config.locate_grid(Path(path))
    values = config.read_mapping(found, str(path), "grid")
    for key in values:
        if key not in KEYS:
            raise UserError(f"{path}: {key}: unknown key{did_you_mean(str(key), KEYS)}")
    if not isinstance(values.get("base"), str):
        raise UserError(f"{path}: base: is missing; it names the config that all cells start from")
    if not isinstance(values.get("grid_dir", ""), str):
        raise UserError(f"{path}: grid_dir: {values['grid_dir']!r} is no folder's name")
    base = found.parent / values["base"]
    attacks, defenses = (_labelled(path, values, key) for key in ("attacks", "defenses"))
    grid = Grid(
        path=found,
        folder=Path(grid_dir or values.get("grid_dir") or f"grids/{found.stem}"),
        base=base if base.is_file() else config.locate(Path(values["base"])),
        changes=_changes(path, "set", values.get("set")),
        overrides=tuple(overrides),
        data=_labelled(path, values, "data") or {"": {}},
        attacks=_with_none(attacks, NOBODY, NO_ATTACK),
        defenses=_with_none(defenses, UNDEFENDED, NO_DEFENSE),
        seeds=_seeds(path, values.get("seeds", [1])),
    )
    _check_overrides(grid)
    return Grid(**{**vars(grid), "cells": tuple(_cells(grid))})


def name_of(data: str, attack: str, defense: str, seed: int) -> str:
    """The name of a cell.

    >>> name_of("", "patch 1 %", "krum", 2)
    'patch-1-%__krum__seed-2'
    """
    parts = [part for part in (data, attack, defense) if part] + [f"seed {seed}"]
    return "__".join(parts).replace(" ", "-")


def _cells(grid: Grid) -> list[Cell]:
    """Seed by seed, and in each the undefended arms first, so that a comparison fills up early."""
    cells: dict[str, Cell] = {}
    values = config.read_mapping(grid.base, str(grid.base))
    combinations = [
        (data, attack, defense)
        for data in grid.data
        for defense in grid.defenses
        for attack in grid.attacks
    ]
    # Reading one takes a tenth of a second: once for all seeds.
    experiments = {which: _experiment(grid, values, *which) for which in combinations}
    for seed in grid.seeds:
        for which in combinations:
            cell = _cell(grid, experiments[which], *which, seed)
            if len(cell.name) > LONGEST:
                raise UserError(
                    f"{grid.path}: the name of cell {cell.name} is longer than {LONGEST} letters; "
                    "shorten its labels"
                )
            if cell.name in cells:
                raise UserError(
                    f"{grid.path}: two cells would be called {cell.name}; rename a label"
                )
            cells[cell.name] = cell
    _check_twins(grid, experiments)
    return list(cells.values())


def _check_twins(grid: Grid, experiments: Mapping[tuple[str, str, str], Experiment]) -> None:
    """Two labels of one thing would be trained twice, to the same bytes, and compared."""
    seen: list[tuple[str, Experiment]] = []
    for which, experiment in experiments.items():
        name = " / ".join(filter(None, which))
        twin = next((other for other, one in seen if one == experiment), None)
        if twin is not None:
            raise UserError(f"{grid.path}: {twin} and {name} have the same settings; leave one out")
        seen.append((name, experiment))


def _experiment(
    grid: Grid, values: Mapping[str, Any], data: str, attack: str, defense: str
) -> Experiment:
    own = copy.deepcopy(dict(values))
    for changes in (grid.changes, grid.data[data], grid.attacks[attack], grid.defenses[defense]):
        _apply(own, changes)
    where = f"{grid.path}: {' / '.join(filter(None, (data, attack, defense)))}"
    experiment = config.from_dict(own, grid.overrides, where)
    for path in (grid.base, grid.path):
        config.look_beside(path, experiment)
    acts = labels_of(experiment).attack
    if attack != NOBODY and acts == NOBODY:
        raise UserError(
            f"{where}: nobody attacks (attack.name is {experiment.attack.name}, attack.poison_rate "
            f"{experiment.attack.poison_rate}); the clean arm is there already, as {NOBODY}"
        )
    return experiment


def _cell(
    grid: Grid, experiment: Experiment, data: str, attack: str, defense: str, seed: int
) -> Cell:
    own = copy.deepcopy(experiment)
    name = name_of(data, attack, defense, seed)
    own.seed = seed
    own.run_dir = str(grid.folder / "cells" / name)
    labels = Labels(data or own.data.class_path or own.data.name or "", attack, defense, seed)
    wandb = own.tracking.wandb
    wandb.group = wandb.group or grid.folder.name
    wandb.job_type = wandb.job_type or labels.arm
    wandb.tags = [*wandb.tags, *(f"{key}: {value}" for key, value in labels._asdict().items())]
    return Cell(labels, name, own)


def _apply(values: dict[str, Any], changes: Changes) -> None:
    """Writes the changes into nested values. A group in which they choose another component
    forgets the one before, with its arguments."""
    for key, value in changes.items():
        here, name = _group(values, key)
        if name in CHOICE and here.get(name) != value:
            for other in CHOSEN:
                here.pop(other, None)
    for key, value in changes.items():
        here, name = _group(values, key)
        here[name] = copy.deepcopy(value)


def _group(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The nested mapping that a dotted key is in, made where there is none, and its name there."""
    *groups, name = key.split(".")
    for group in groups:
        if not isinstance(values.get(group), dict):
            values[group] = {}
        values = values[group]
    return values, name


def _check_overrides(grid: Grid) -> None:
    """What data, attacks and defences change is what tells the cells apart."""
    arms = {
        key: f"{room}.{label}"
        for room in ("data", "attacks", "defenses")
        for label, changes in getattr(grid, room).items()
        for key in changes
    }
    for override in grid.overrides:
        key = override.removeprefix("--").split("=", 1)[0]
        if key in OWN:
            raise UserError(f"--{key}: every cell of a grid has its own; see seeds and --grid_dir")
        rival = next((arm for arm in arms if _overlap(arm, key)), None)
        if rival is not None:
            raise UserError(
                f"--{key}: {arms[rival]} of the grid changes that; change it in the file"
            )


def _overlap(one: str, other: str) -> bool:
    """Whether two dotted keys are the same, or one is inside the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _with_none(labelled: dict[str, Changes], none: str, nothing: Changes) -> dict[str, Changes]:
    """The labels after that of the arm without, whatever else that changes."""
    return {none: {}, **labelled} | {none: {**labelled.get(none, {}), **nothing}}


def _seeds(path: Path | str, seeds: Any) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{path}: seeds: {seeds!r} is no list of whole numbers")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds: {seeds} names one twice")
    return tuple(seeds)


def _labelled(path: Path | str, values: dict[str, Any], key: str) -> dict[str, Changes]:
    labelled = {} if values.get(key) is None else values[key]
    if not isinstance(labelled, dict):
        raise UserError(f"{path}: {key}: holds labels and what each changes, not {labelled!r}")
    found = {}
    for label, changes in labelled.items():
        if label is None or isinstance(label, bool):  # as YAML reads on, off, yes, no and ~
            raise UserError(f"{path}: {key}: YAML reads a label as {label}; put it in quotes")
        if not LABEL.fullmatch(str(label)):
            raise UserError(
                f"{path}: {key}: the label '{label}' must begin with a letter or digit, and may go "
                "on with letters, digits, spaces and _ . , + = % -"
            )
        found[str(label)] = _changes(path, f"{key}.{label}", changes)
    return found


def _changes(path: Path | str, key: str, changes: Any) -> Changes:
    changes = {} if changes is None else changes
    if not isinstance(changes, dict):
        raise UserError(f"{path}: {key}: holds keys of the vocabulary and values, not {changes!r}")
    flat: Changes = {}

    def walk(prefix: str, value: Any) -> None:
        inside = prefix.rpartition(".")[0].endswith("init_args")  # an argument, whatever it is
        is_group = "." not in prefix  # of which no key is changed by {}
        if isinstance(value, dict) and (value or is_group) and prefix not in WHOLE and not inside:
            for name, inner in value.items():
                walk(f"{prefix}.{name}" if prefix else str(name), inner)
        else:
            rival = next((other for other in flat if _overlap(other, prefix)), None)
            if rival is not None:
                both = f"{rival} and {prefix} both stand" if rival != prefix else f"{rival} stands"
                raise UserError(f"{path}: {key}: {both} there{' twice' * (rival == prefix)}")
            flat[prefix] = value

    walk("", changes)
    for name in OWN:
        if name in flat:
            raise UserError(
                f"{path}: {key}: {name}: every cell has its own; see seeds and grid_dir"
            )
    return flat
