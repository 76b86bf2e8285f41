"""One experiment from its settings to its run directory: run, resume, evaluate."""

from __future__ import annotations

import copy
import errno
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedgan import config
from fedgan.assembly import assemble, examiners, networks
from fedgan.checkpoint import Checkpoints, load
from fedgan.cluster import Cluster
from fedgan.devices import is_main_process
from fedgan.errors import UserError
from fedgan.plan import Plan, make_plan
from fedgan.server import Server
from fedgan.settings import Experiment
from fedgan.summary import summarise, write_json
from fedgan.tracking import observers, say
from fedgan.tracking.base import Observer, RunInfo

log = logging.getLogger(__name__)

State = dict[str, Any]


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
    run_dir = Path(settings.run_dir or "runs/experiment")
    if is_main_process() and run_dir.exists() and not overwrite:
        raise UserError(
            f"run_dir: {run_dir} exists; --overwrite replaces it, "
            f"`fedgan resume {run_dir}` goes on with it"
        )
    plan = make_plan(settings)
    return Cluster(settings.cluster).launch(_train, plan, None)


def resume(run_dir: str | Path) -> dict[str, Any]:
    """Goes on from the newest checkpoint of a run, to the same bytes as if it had never stopped.

    Raises `UserError` where there is no run, or no readable checkpoint in it.
    """
    folder = Path(run_dir)
    settings = _settings_of(folder)
    path, state, damaged = Checkpoints(folder / "checkpoints", 1).load_newest()
    for line in damaged:
        log.warning("%s; going back to %s", line, path.name)
    return Cluster(settings.cluster).launch(_train, make_plan(settings), state)


def evaluate(
    run_dir: str | Path,
    *,
    checkpoint: str | Path | None = None,
    samples: int | None = None,
    encoder: str | None = None,
) -> dict[str, Any]:
    """Measures a finished or unfinished run's generator again; writes and returns evaluation.json.

    `checkpoint` is a file, the newest one if not given; `samples` and `encoder` take the place of
    the config's. Raises `UserError` as `resume` does.
    """
    folder = Path(run_dir)
    settings = _settings_of(folder)
    if samples is not None:
        settings.evaluate.samples = samples
    if encoder is not None:
        settings.evaluate.encoder = encoder
    if checkpoint is None:
        path, state, _ = Checkpoints(folder / "checkpoints", 1).load_newest()
    else:
        path, state = Path(checkpoint), load(Path(checkpoint))
    result = Cluster(settings.cluster).launch(_examine, make_plan(settings), state)
    result = {"checkpoint": str(path), **result}
    write_json(folder / "evaluation.json", result)
    return result


def _settings(experiment: Experiment | Mapping[str, Any] | str | Path) -> Experiment:
    if isinstance(experiment, Experiment):
        return copy.deepcopy(experiment)
    if isinstance(experiment, Mapping):
        return config.from_dict(experiment)
    return config.read(experiment)


def _settings_of(run_dir: Path) -> Experiment:
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run_dir}: no run here (it has no config.yaml)")
    settings = config.read(path)
    settings.run_dir = str(run_dir)  # it may have been moved since
    return settings


def _train(cluster: Cluster, plan: Plan, state: State | None) -> dict[str, Any]:
    """What every rank does; the answer is the same on each, and written by rank 0."""
    started = time.perf_counter()
    if cluster.is_main:
        encoders = " and ".join(sorted({plan.watch_encoder.name, plan.final_encoder.name}))
        say(
            f"preparing {encoders} on the real images of {plan.dataset.name} (cached for next time)"
        )
    watch, final = examiners(cluster, plan)
    observer = Observer()
    if cluster.is_main:
        if state is None:
            make_run_dir(plan)
        observer = observers(plan.settings, plan.run_dir)
    federation = assemble(cluster, plan, watch, final, observer)
    if state is not None:
        federation.load(state)
    info = RunInfo(
        run_dir=plan.run_dir,
        settings=plan.settings,
        n_images=tuple(federation.n_images),
        malicious=plan.schedule.clients,
        counts=plan.counts,
        classes=plan.dataset.classes,
        images_in_round=sum(
            federation.steps(c) * federation.batch_size(c) for c in range(len(plan.parts))
        ),
        first_round=federation.done + 1,
    )
    try:
        observer.on_start(info)
        figures = federation.run()
        summary = summarise(plan, info, cluster, federation, figures, started)
        if cluster.is_main:
            write_json(plan.run_dir / "summary.json", summary)
            observer.on_end(summary)
    finally:
        observer.close()
    return summary


def _examine(cluster: Cluster, plan: Plan, state: State) -> dict[str, Any]:
    """Final figures of a checkpoint's generator, on every rank."""
    generator = networks(plan)[0].to(cluster.device)
    server = Server(generator, None, plan.settings.federation.ema)
    server.load_state_dict(state["server"])
    _, final = examiners(cluster, plan, watch=False)
    figures = final.measure(server.averaged_generator(), cluster)
    return {
        "round": state["round"],
        "figures": figures,
        "final": final.fidelity.settings(),
        "generator_sha256": server.generator_sha256(),
    }


def make_run_dir(plan: Plan) -> None:
    """Makes the run directory with config.yaml in it, or nothing.

    An older one goes only now, when all has been checked. Raises `UserError` where the disk is
    read-only or too full for the checkpoints.
    """
    run_dir = plan.run_dir
    beside = run_dir.with_name(f".{run_dir.name}.new")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        (beside / "checkpoints").mkdir(parents=True)
        if shutil.disk_usage(beside).free < _bytes_of_checkpoints(plan):
            raise OSError(errno.ENOSPC, "the disk has no room for the checkpoints")
        (beside / "config.yaml").write_text(config.dump(plan.settings), encoding="utf-8")
        shutil.rmtree(run_dir, ignore_errors=True)
        beside.replace(run_dir)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise UserError(f"run_dir: cannot write {run_dir}: {error.strerror}") from None


def _bytes_of_checkpoints(plan: Plan) -> int:
    """Room for the checkpoints kept and the one being written: a client's networks and their two
    moments each, and the global model and its average."""
    size = sum(tensor.nbytes for network in networks(plan) for tensor in network.parameters())
    return size * (3 * len(plan.parts) + 2) * (plan.settings.checkpoint.keep + 1)
