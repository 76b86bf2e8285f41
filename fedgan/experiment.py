"""One experiment from its settings to its run directory: run, resume, evaluate.

Lightning is imported (seconds) only when all has been checked that can be checked without it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedgan import config
from fedgan.checkpoint import Checkpoints, round_of
from fedgan.choices import ask_for
from fedgan.data.given import load_given, write_labelled
from fedgan.devices import one_thread_before_a_fork, resolve_accelerator
from fedgan.errors import UserError
from fedgan.launcher import is_main_process, is_one_of_many
from fedgan.metrics.measure import Tick, ignore
from fedgan.plan import class_paths, make_plan
from fedgan.rundir import (
    CHECKPOINTS,
    CONFIG,
    UNLESS_BEGUN,
    check_run_dir,
    check_same_run,
    is_held,
    read_settings,
)
from fedgan.settings import Experiment

if TYPE_CHECKING:
    from torch import Tensor

    from fedgan.plan import Plan
    from fedgan.ranks import Prepared

log = logging.getLogger(__name__)


def run(
    experiment: Experiment | Mapping[str, Any] | str | Path,
    *,
    overwrite: bool = False,
    go_on: bool = False,
) -> dict[str, Any]:
    """Trains one federation and returns what its summary.json holds.

    `experiment` is an `Experiment`, a mapping of the same keys, or a YAML file. With `go_on`, a run
    directory that holds a checkpoint of this experiment is gone on with, as `resume` does, and one
    without any is started afresh.

    Raises `UserError` for bad input before anything is trained or written, and where the run
    directory exists and neither `overwrite` nor `go_on` is given; `RunError` where a process of the
    run fails or is killed; `Interrupted` after a stop signal.

    >>> run("configs/smoke.yaml")["figures"]["presence"]  # doctest: +SKIP
    0.0
    """
    settings = _settings(experiment)
    if settings.run_dir is None:
        settings.run_dir = "runs/experiment"
    folder = Path(settings.run_dir)

    def prepare() -> Prepared:
        there = Checkpoints(folder / CHECKPOINTS, 1).all() if go_on and is_main_process() else []
        if is_main_process() and not there:
            check_run_dir(folder, overwrite=overwrite or go_on)
        plan = make_plan(settings)
        if not there:
            return plan, None, overwrite or (go_on and UNLESS_BEGUN)
        check_same_run(folder, settings)
        return plan, _checkpoint(folder, None), False

    return _train(settings, prepare)


def resume(
    run_dir: str | Path,
    overrides: Sequence[str] = (),
    *,
    checkpoint: str | Path | None = None,
) -> dict[str, Any]:
    """Goes on from a checkpoint of a run, to the same bytes as if it had never stopped.

    `overrides` such as `--cluster.devices=2` may change the machine, what is measured and where it
    is logged. `checkpoint` is a folder, or `newest`, which it is if not given, or `best`; later
    rounds are then played again. Raises `UserError` where there is no run, or no readable
    checkpoint in it, and whatever `run` raises.
    """
    folder = Path(run_dir)
    settings = read_settings(folder, list(overrides))
    return _train(settings, lambda: (make_plan(settings), _checkpoint(folder, checkpoint), False))


def evaluate(
    run_dir: str | Path,
    *,
    checkpoint: str | Path | None = None,
    samples: int | None = None,
    encoder: str | None = None,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    tick: Tick = ignore,
) -> dict[str, Any]:
    """Measures a run's generator again; writes evaluation.json and returns what was found.

    `checkpoint` is as for `resume`; `samples`, `encoder` (several with commas between) and `only`
    (names of measures) take the place of the config's. `tick` is told what goes on. Raises
    `UserError` as `resume` does.
    """
    folder = Path(run_dir)
    settings = read_settings(folder, list(overrides))
    _ask_for(settings, samples, encoder, only)

    def prepare() -> Prepared:
        return make_plan(settings), _checkpoint(folder, checkpoint), False

    prepared = _prepare(settings, prepare)
    with one_thread_before_a_fork(settings.cluster):
        from fedgan import ranks

        return ranks.launch(settings.cluster, str, ranks.examine, tick, prepare, prepared)


def evaluate_images(
    images: str | Path,
    real: str | Path | Experiment,
    *,
    out: str | Path = "evaluation.json",
    samples: int | None = None,
    encoder: str | None = None,
    only: Sequence[str] = (),
    overrides: Sequence[str] = (),
    tick: Tick = ignore,
) -> dict[str, Any]:
    """Measures images that somebody else has made against real ones; writes `out`.

    `images` is a folder (of class folders, or of images without labels) or a .npz file (see
    `fedgan.data.given`); `real` is a config file, whose attack is looked for, or what `data.name`
    can be, a run directory, or a .npz file. Raises `UserError` for whatever the user can mend.
    """
    settings = real if isinstance(real, Experiment) else config.about_data(real, list(overrides))
    _ask_for(settings, samples, encoder, only)
    if not only:  # nobody was judged
        settings.evaluate.measures = [m for m in settings.evaluate.measures if m != "detection"]

    def prepare() -> tuple[Plan, Tensor, Tensor | None]:
        plan = make_plan(settings)
        data = plan.dataset
        found, labels = load_given(Path(images), data.channels, data.size, data.classes)
        return plan, found, labels

    settings.cluster.accelerator = resolve_accelerator(settings.cluster)
    together = is_one_of_many(settings.cluster)
    with one_thread_before_a_fork(settings.cluster):
        prepared = None if together else prepare()
        from fedgan import ranks

        about = {"images": str(images), "real": str(real)}
        work = ranks.examine_images
        return ranks.launch(settings.cluster, str, work, tick, prepare, prepared, about, Path(out))


def _ask_for(
    settings: Experiment, samples: int | None, encoder: str | None, only: Sequence[str]
) -> None:
    if samples is not None:
        settings.evaluate.samples = samples
    with class_paths(settings):
        ask_for(settings.evaluate, encoder.split(",") if encoder else [], only)


def generate(
    run_dir: str | Path,
    out: str | Path,
    *,
    samples: int | None = None,
    rebalance: bool = False,
    checkpoint: str | Path | None = None,
) -> dict[str, int]:
    """Writes labelled images of a run's generator, and returns how many there are of each class.

    `out` is a .npz file with `images` uint8 [N, H, H(, C)] and `labels`, or a folder of class
    folders of PNG files; it must not exist. Either `samples` images in the training images' mix of
    labels, or, with `rebalance`, of each class as many as it has fewer training images than the
    largest. The same call gives the same images. Raises `UserError` as `resume` does.
    """
    if (samples is None) != rebalance:
        raise UserError("generate: either --samples or --rebalance")
    if samples is not None and samples < 1:
        raise UserError(f"generate: --samples is {samples}; it must be at least 1")
    folder, target = Path(run_dir), Path(out).expanduser()
    if target.exists():
        raise UserError(f"generate: {out} exists; name another, or delete it")
    if target.suffix not in ("", ".npz"):
        raise UserError(f"generate: --out={out}: allowed: a .npz file, or a folder")
    if not target.absolute().parent.is_dir():
        raise UserError(f"generate: --out={out}: there is no folder {target.parent}")
    settings = read_settings(folder, [])
    settings.cluster.devices = settings.cluster.nodes = 1

    def prepare() -> Prepared:
        return make_plan(settings), _checkpoint(folder, checkpoint), False

    prepared = _prepare(settings, prepare)
    with one_thread_before_a_fork(settings.cluster):
        from fedgan import ranks

        work = ranks.generate
        images, labels = ranks.launch(settings.cluster, str, work, prepare, prepared, samples)
    classes = (prepared or prepare())[0].dataset.classes
    write_labelled(target, images, labels, classes)
    return {name: int(_has(labels, k).sum()) for k, name in enumerate(classes)}


def _has(labels: Tensor, k: int) -> Tensor:
    return labels == k if labels.ndim == 1 else labels[:, k] > 0


def resume_hint(run_dir: Path) -> str:
    """What to type after a run has ended before its time; nothing where all of it is lost."""
    there = Checkpoints(run_dir / CHECKPOINTS, 1).all()
    if not there:
        return ""
    return f"`fedgan resume {run_dir}` goes on after round {round_of(there[-1])}"


def _train(settings: Experiment, prepare: Callable[[], Prepared]) -> dict[str, Any]:
    prepared = _prepare(settings, prepare)
    run_dir = Path(settings.run_dir or "")
    with one_thread_before_a_fork(settings.cluster):
        from fedgan import ranks

        def hint() -> str:
            return resume_hint(run_dir)

        return ranks.launch(settings.cluster, hint, ranks.train, prepare, prepared)


def _prepare(settings: Experiment, prepare: Callable[[], Prepared]) -> Prepared | None:
    settings.cluster.accelerator = resolve_accelerator(settings.cluster)
    # Processes that are there already meet first, so that what one of them lacks is known to all.
    if is_one_of_many(settings.cluster):
        return None
    with one_thread_before_a_fork(settings.cluster):
        return prepare()


def _checkpoint(run_dir: Path, name: str | Path | None) -> Path | None:
    """The checkpoint to begin with, chosen by rank 0 alone."""
    if not is_main_process():
        return None
    there = Checkpoints(run_dir / CHECKPOINTS, 1)
    if name in (None, "newest", "best") and not there.all():
        raise UserError(f"{run_dir}: no checkpoint yet, so there is no generator; {_how(run_dir)}")
    path, damaged = there.find(name)
    for line in damaged:
        log.warning("%s; going back to %s", line, path.name)
    return path


def _how(run_dir: Path) -> str:
    """How a run without a checkpoint comes by one."""
    every = read_settings(run_dir, []).checkpoint.every
    when = f"every {every} rounds" if every > 1 else "after each round"
    if every == 0:
        when = "at the end, and after the best looks only (checkpoint.every is 0)"
    if is_held(run_dir):
        return f"it is being trained, and is saved {when}"
    return (
        f"`fedgan train {run_dir / CONFIG} --run_dir={run_dir} --resume` trains it from the start, "
        f"and saves it {when}"
    )


def _settings(experiment: Experiment | Mapping[str, Any] | str | Path) -> Experiment:
    if isinstance(experiment, Experiment):
        return copy.deepcopy(experiment)
    if isinstance(experiment, Mapping):
        return config.from_dict(experiment)
    if isinstance(experiment, (str, Path)):
        return config.read(experiment)
    raise UserError(f"an experiment is a file, a mapping or an Experiment, not {experiment!r}")
