"""One experiment from its settings to its run directory: run, resume, evaluate.

Lightning is imported (seconds) only when all has been checked that can be checked without it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgan import config
from fedgan.checkpoint import Checkpoints, load
from fedgan.devices import is_main_process, one_thread_before_a_fork
from fedgan.errors import UserError
from fedgan.plan import make_plan
from fedgan.rundir import check_run_dir, read_settings
from fedgan.settings import Experiment
from fedgan.summary import write_json

log = logging.getLogger(__name__)


def run(
    experiment: Experiment | Mapping[str, Any] | str | Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Trains one federation and returns what its summary.json holds.

    `experiment` is an `Experiment`, a mapping of the same keys, or a YAML file. Raises `UserError`
    for bad input before anything is trained or written, and where the run directory exists and
    `overwrite` is false.

    >>> run("configs/smoke.yaml")["figures"]["presence"]  # doctest: +SKIP
    0.0
    """
    settings = _settings(experiment)
    if settings.run_dir is None:
        settings.run_dir = "runs/experiment"
    if is_main_process():
        check_run_dir(Path(settings.run_dir), overwrite=overwrite)
    return _train(settings, None)


def resume(run_dir: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Goes on from the newest checkpoint of a run, to the same bytes as if it had never stopped.

    `overrides` such as `--cluster.devices=2` may change the machine, what is measured and where it
    is logged. Raises `UserError` where there is no run, or no readable checkpoint in it.
    """
    folder = Path(run_dir)
    settings = read_settings(folder, list(overrides))
    path, state, damaged = Checkpoints(folder / "checkpoints", 1).load_newest()
    for line in damaged:
        log.warning("%s; going back to %s", line, path.name)
    return _train(settings, state)


def evaluate(
    run_dir: str | Path,
    *,
    checkpoint: str | Path | None = None,
    samples: int | None = None,
    encoder: str | None = None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures a run's generator again; writes evaluation.json and returns what it holds.

    `checkpoint` is a file, the newest one if not given; `samples` and `encoder` take the place of
    the config's. Raises `UserError` as `resume` does.
    """
    folder = Path(run_dir)
    settings = read_settings(folder, list(overrides))
    if samples is not None:
        settings.evaluate.samples = samples
    if encoder is not None:
        settings.evaluate.encoder = encoder
    if checkpoint is None:
        path, state, _ = Checkpoints(folder / "checkpoints", 1).load_newest()
    else:
        path, state = Path(checkpoint), load(Path(checkpoint))
    with one_thread_before_a_fork(settings.cluster):
        plan = make_plan(settings)
        from fedgan import ranks

        result = ranks.launch(settings.cluster, ranks.examine, plan, state)
    result = {"checkpoint": str(path), **result}
    if is_main_process():
        write_json(folder / "evaluation.json", result)
    return result


def _train(settings: Experiment, state: dict[str, Any] | None) -> dict[str, Any]:
    with one_thread_before_a_fork(settings.cluster):
        plan = make_plan(settings)
        from fedgan import ranks

        return ranks.launch(settings.cluster, ranks.train, plan, state)


def _settings(experiment: Experiment | Mapping[str, Any] | str | Path) -> Experiment:
    if isinstance(experiment, Experiment):
        return copy.deepcopy(experiment)
    if isinstance(experiment, Mapping):
        return config.from_dict(experiment)
    if isinstance(experiment, (str, Path)):
        return config.read(experiment)
    raise UserError(f"an experiment is a file, a mapping or an Experiment, not {experiment!r}")
