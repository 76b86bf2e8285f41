"""Finished runs, read back for comparisons: what was attacked and defended, and what came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedgan.errors import UserError
from fedgan.rundir import CONFIG, read_settings
from fedgan.settings import Experiment
from fedgan.tracking.evaluations import EVALUATION, read_evaluation
from fedgan.tracking.records import CLIENTS, METRICS, read_table

SUMMARY = "summary.json"
GRID = "grid.json"
"""In a grid's directory: a list of {name, labels, run_dir, state}, a cell each."""
FROM_COMMAND_LINE = "# and from the command line: "
"""In a grid's grid.yaml: begins a line that holds one override of all cells."""
NOBODY, UNDEFENDED = "none", "none"
"""Labels of an attack that nobody carries out, and of plain FedAvg."""


class Labels(NamedTuple):
    """What tells the cells of a comparison apart."""

    data: str
    attack: str
    defense: str
    seed: int

    @property
    def arm(self) -> str:
        """`clean` (no attack, no defence), `attacked`, `defended`, or `alarms` (a defence where
        nobody attacks).

        >>> Labels("brain-mri", "patch", "none", 1).arm, Labels("brain-mri", "none", "krum", 1).arm
        ('attacked', 'alarms')
        """
        attacked, defended = self.attack != NOBODY, self.defense != UNDEFENDED
        if attacked:
            return "defended" if defended else "attacked"
        return "alarms" if defended else "clean"


@dataclass(frozen=True)
class Run:
    """A run directory that holds a finished run.

    Attributes:
        path: the directory.
        labels: its place in a comparison.
        settings: config.yaml.
        summary: summary.json.
        evaluation: evaluation.json, or {}.
        metrics: a row a round; numbers as float, empty cells left out.
        clients: a row a client a round, likewise, `flagged`, `suppressed` and `malicious` as bool.
    """

    path: Path
    labels: Labels
    settings: Experiment
    summary: dict[str, Any]
    evaluation: dict[str, Any]
    metrics: list[dict[str, Any]]
    clients: list[dict[str, Any]]

    @property
    def figures(self) -> dict[str, float]:
        """Final figures, with those that `fedgan evaluate` has added since.

        Where it has measured the same generator in another way (another encoder, other sample
        counts), that stands alone: figures of two ways never stand side by side. Figures that are
        not finite are left out.
        """
        found = self._newest("figures")
        return {k: float(v) for k, v in found.items() if v is not None and math.isfinite(v)}

    @property
    def final(self) -> dict[str, Any]:
        """How `figures` were measured: encoders, samples, ..."""
        told = self.evaluation if self._measured_again() else self.summary
        found: dict[str, Any] = told["final"]
        return found

    @property
    def details(self) -> dict[str, dict[str, Any]]:
        """What each measure tells beside `figures`, by the measure's name."""
        return self._newest("details")

    @property
    def pictures(self) -> dict[str, list[Path]]:
        """Files of the pictures that each measure has drawn of this generator and that are there,
        by the measure's name."""
        drawn: dict[str, list[str]] = self.evaluation.get("pictures", {})
        if not self._measured_again():
            return {}
        found = {name: [self.path / file for file in files] for name, files in drawn.items()}
        return {name: [one for one in files if one.is_file()] for name, files in found.items()}

    def _newest(self, key: str) -> dict[str, Any]:
        """The run's own and what was measured since; the latter alone where it was otherwise."""
        own: dict[str, Any] = self.summary.get(key, {})
        if not self._measured_again():
            return own
        alike = _way(self.evaluation) == _way(self.summary)
        return {**(own if alike else {}), **self.evaluation.get(key, {})}

    def _measured_again(self) -> bool:
        sha = self.evaluation.get("generator_sha256")
        whole = "figures" in self.evaluation and "final" in self.evaluation
        return whole and sha is not None and sha == self.summary.get("generator_sha256")


class Missing(NamedTuple):
    """A cell of a grid that has no finished run."""

    name: str
    labels: Labels
    state: str
    """When the grid was last at work: missing, running, `cut off` or failed; or, where there is a
    run that cannot be read, why."""


class GridRuns(NamedTuple):
    """What a grid's directory holds."""

    runs: list[Run]
    missing: list[Missing]


def read_run(path: Path, labels: Labels | None = None) -> Run:
    """The finished run in a directory; labels come from its config unless they are given.

    Raises `UserError` where there is no run, or one that has not finished.
    """
    settings = read_settings(path, [])
    try:
        summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: has not finished; `fedgan resume {path}` goes on") from None
    except ValueError:
        raise UserError(f"{path / SUMMARY}: is broken; `fedgan resume {path}` mends it") from None
    if not isinstance(summary, dict) or not {"figures", "final", "rounds"} <= summary.keys():
        raise UserError(f"{path / SUMMARY}: is no summary of a run")
    return Run(
        path=path,
        labels=labels or labels_of(settings),
        settings=settings,
        summary=summary,
        evaluation=read_evaluation(path / EVALUATION),
        metrics=[_parsed(row) for row in read_table(path / METRICS)],
        clients=[_parsed(row) for row in read_table(path / CLIENTS)],
    )


def labels_of(settings: Experiment) -> Labels:
    """What a single run's config says of its place.

    >>> from fedgan.settings import Attack
    >>> labels_of(Experiment(attack=Attack(name="patch"))).attack
    'patch'
    """
    attack, defense = settings.attack, settings.defense.words()
    named = [attack.class_path or attack.name or NOBODY]
    several = attack.update if isinstance(attack.update, list) else [attack.update]
    named += [
        choice if isinstance(choice, str) else str(choice.get("class_path") or choice.get("name"))
        for choice in (*several, attack.report)
        if choice
    ]
    doing = [name for name in named if name != NOBODY]
    return Labels(
        data=settings.data.class_path or settings.data.name or "",
        attack=" + ".join(doing) if doing and attack.poison_rate > 0 else NOBODY,
        defense=UNDEFENDED if defense in ("none", "fedavg") else defense,
        seed=settings.seed,
    )


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory, finished or not."""
    return (path / CONFIG).is_file()


def is_grid_dir(path: Path) -> bool:
    """Whether a folder is the directory of a grid."""
    return (path / GRID).is_file()


def read_grid_dir(path: Path) -> GridRuns:
    """The finished runs of a grid's directory, in the order of its cells, and what is missing.

    Whether a run has finished is looked up in its own directory, which may have been filled since
    grid.json was written. Raises `UserError` where there is no grid, or a broken file.
    """
    try:
        cells = json.loads((path / GRID).read_text(encoding="utf-8"))
        told = [
            (cell["name"], Labels(**cell["labels"]), path / cell["run_dir"], cell["state"])
            for cell in cells
        ]
    except FileNotFoundError:
        raise UserError(f"{path}: no grid here (it has no {GRID})") from None
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{path / GRID}: is broken; `fedgan grid` writes it anew") from None
    runs, missing = [], []
    for name, labels, run_dir, state in told:
        if not (run_dir / SUMMARY).is_file():
            missing.append(Missing(name, labels, state))
            continue
        try:
            runs.append(read_run(run_dir, labels))
        except UserError as error:  # one broken cell does not hide the others
            missing.append(Missing(name, labels, str(error)))
    return GridRuns(runs, missing)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """All of them, in order. Raises `UserError` as `read_run` does."""
    return [read_run(path) for path in paths]


def _way(told: dict[str, Any]) -> str:
    """How figures were measured, the choice of measures aside."""
    settings = {key: value for key, value in told["final"].items() if key != "measures"}
    return json.dumps(settings, sort_keys=True, default=str)


def _parsed(row: dict[str, str]) -> dict[str, Any]:
    return {key: _value(text) for key, text in row.items() if text != ""}


def _value(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    try:
        return float(text)
    except ValueError:
        return text
