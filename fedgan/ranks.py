"""What every rank does once Fabric has launched it: train a plan, or measure a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedgan.assembly import assemble, networks
from fedgan.cache import write_json
from fedgan.checkpoint import load_server
from fedgan.cluster import Cluster
from fedgan.errors import UserError
from fedgan.evaluation import Examiner
from fedgan.federation import Federation
from fedgan.generated import Given, Latents
from fedgan.generated import generate as draw
from fedgan.keeping import Kept
from fedgan.metrics._shared import digest
from fedgan.metrics.measure import Tick, ignore
from fedgan.plan import Plan
from fedgan.rundir import CHECKPOINTS, TAKEN, UNLESS_BEGUN, held, make_run_dir, tidy
from fedgan.runs import labels_of
from fedgan.scenes import examiner, examiners
from fedgan.seeding import torch_generator
from fedgan.server import Server
from fedgan.settings import Cluster as Settings
from fedgan.settings import Experiment
from fedgan.summary import summarise
from fedgan.tracking import observers, preparing, say, tell_of_evaluation
from fedgan.tracking.base import Observer, RunInfo
from fedgan.tracking.evaluations import EVALUATION, FOLDER, looked_at, write_evaluation

T = TypeVar("T")
Prepared = tuple[Plan, Path | None, bool | str]
"""What to train, the checkpoint to begin with, which only rank 0 needs to know, and whether a run
that is there already may be replaced, perhaps `UNLESS_BEGUN`."""


def launch(settings: Settings, hint: Callable[[], str], work: Callable[..., T], *args: Any) -> T:
    """`work(cluster, *args)` on every rank; rank 0's answer."""
    return Cluster(settings, hint).launch(work, *args)


def train(
    cluster: Cluster, prepare: Callable[[], Prepared], prepared: Prepared | None
) -> dict[str, Any]:
    """Plays all rounds that are left. The summary is the same on every rank; rank 0 writes it.

    `prepare` is called where it has not been before the launch: where another launcher has started
    the ranks, so that what is wrong with one of them is known to all.
    """
    started = time.perf_counter()
    plan, checkpoint, overwrite = prepared or prepare()
    checkpoint = cluster.broadcast_object(checkpoint)
    if cluster.is_main:
        if cluster.world > 1:
            say(cluster.description())
        names = {encoder.name for look in (plan.watch, plan.final) for encoder in look.encoders}
        encoders = " and ".join(sorted(names))
        say(f"preparing {encoders} on real images of {plan.dataset.name} (cached for next time)")
    with preparing() if cluster.is_main else nullcontext(ignore) as tick:
        watch, final = examiners(cluster, plan, tick=tick)
    with held(plan.run_dir) if cluster.is_main else nullcontext():
        if cluster.is_main:
            if checkpoint is None:
                room = bytes_of_checkpoints(plan)
                _check_not_begun(plan.run_dir, overwrite)
                make_run_dir(plan.run_dir, plan.settings, room, overwrite=bool(overwrite))
            else:
                tidy(plan.run_dir)
        return _train(cluster, plan, checkpoint, watch, final, started)


def _check_not_begun(run_dir: Path, overwrite: bool | str) -> None:
    """Raises `UserError` where two processes were told to begin a run or to go on with it, and the
    other was ahead and has let go again while this one was preparing."""
    if overwrite == UNLESS_BEGUN and any((run_dir / CHECKPOINTS).glob("round_*")):
        raise UserError(f"run_dir: {TAKEN} {run_dir}, or was until now; --resume goes on with it")


def _train(
    cluster: Cluster,
    plan: Plan,
    checkpoint: Path | None,
    watch: Examiner,
    final: Examiner,
    started: float,
) -> dict[str, Any]:
    observer = observers(plan.settings, plan.run_dir) if cluster.is_main else Observer()
    try:
        federation = assemble(cluster, plan, watch, final, observer)
        if checkpoint is not None:
            federation.load(checkpoint)
            federation.looked_at = cluster.broadcast_object(closely_looked_at(plan))
            cluster.barrier()  # all have read what they need
            if cluster.is_main and federation.checkpoints is not None:
                federation.checkpoints.forget_after(federation.done)
        info = run_info(plan, federation)
        observer.on_start(info)
        evaluation = federation.run()
        summary: dict[str, Any] = {}
        if cluster.is_main:
            told = {"round": federation.done, **federation.told(evaluation)}
            write_evaluation(plan.run_dir / EVALUATION, told, evaluation.pictures)
            summary = summarise(plan, info, cluster, federation, evaluation, started)
            write_json(plan.run_dir / "summary.json", summary)
            observer.on_end(summary)
        summary = cluster.broadcast_object(summary)
    except BaseException as error:
        cluster.tell(error)  # the others need not wait while the observers are closed
        raise
    finally:
        observer.close()
    cluster.barrier()  # srun would count a rank that leaves early as the first of all to end
    return summary


def examine(
    cluster: Cluster, tick: Tick, prepare: Callable[[], Prepared], prepared: Prepared | None
) -> dict[str, Any]:
    """What is measured at the end, of a checkpoint's generator; rank 0 writes evaluation.json,
    after each measure.

    Figures that are there already, of the same generator and settings, are kept beside the new.
    Raises `Interrupted` after a stop signal.
    """
    plan, path, _ = prepared or prepare()
    server, state = _saved(cluster, plan, path)
    heard = tick if cluster.is_main else ignore
    kept = Kept(cluster, plan.run_dir / EVALUATION, plan.final)
    with kept.until_stopped():
        final = examiner(cluster, plan, plan.final, until=state["round"], tick=heard)
        kept.begin(
            final,
            round=state["round"],
            checkpoint=state["checkpoint"],
            generator_sha256=server.generator_sha256(),
        )
        evaluation = final.measure(server.averaged_generator(), heard, kept)
    if cluster.is_main:
        told_of = (plan.settings, plan.run_dir, place(plan.settings))
        tell_of_evaluation(*told_of, kept.told, evaluation.pictures)
    cluster.barrier()
    return kept.told


def generate(
    cluster: Cluster,
    prepare: Callable[[], Prepared],
    prepared: Prepared | None,
    samples: int | None,
) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, C, H, W] of a checkpoint's generator and their labels: `samples` in the
    training images' mix, or, where that is None, what smaller classes lack to the largest."""
    plan, path, _ = prepared or prepare()
    server, _ = _saved(cluster, plan, path)
    rng = torch_generator(plan.settings.seed, "generated labels")
    own = plan.dataset.train.labels
    if samples is None:
        labels = lacking(own, plan.shape.classes)
    else:
        labels = own[torch.randint(len(own), (samples,), generator=rng)]
    generator = server.averaged_generator()
    latents = torch.randn((len(labels), generator.latent_dim), generator=rng)
    given = Latents(latents.to(cluster.device), labels.to(cluster.device))
    batches = given.batches(plan.settings.evaluate.batch_size)
    return torch.cat([draw(generator, *batch).cpu() for batch in batches]), labels


def lacking(labels: Tensor, classes: int) -> Tensor:
    """The labels that bring each class up to the size of the largest, int64 [n].

    >>> lacking(torch.tensor([0, 0, 0, 1]), 3).tolist()
    [1, 1, 2, 2, 2]
    """
    if labels.ndim == 2:
        raise UserError("generate: --rebalance needs one label an image")
    counts = torch.bincount(labels, minlength=classes)
    missing = counts.max() - counts
    if not missing.any():
        raise UserError("generate: no class is smaller than another; --samples says how many")
    return torch.arange(classes).repeat_interleave(missing)


def _saved(cluster: Cluster, plan: Plan, path: Path | None) -> tuple[Server, dict[str, Any]]:
    """The server of a checkpoint that rank 0 has chosen, and what else that holds."""
    chosen = cluster.broadcast_object(path)
    assert chosen is not None
    state = load_server(chosen)
    generator = networks(plan)[0].to(cluster.device)
    server = Server(generator, None, plan.settings.federation.ema)
    if len(state["server"]["average"]) != len(server.average):
        raise UserError("the checkpoint is of another generator than config.yaml's")
    server.load_state_dict(state["server"])
    return server, {**state, "checkpoint": str(chosen)}


def examine_images(
    cluster: Cluster,
    tick: Tick,
    prepare: Callable[[], tuple[Plan, Tensor, Tensor | None]],
    prepared: tuple[Plan, Tensor, Tensor | None] | None,
    about: dict[str, Any],
    path: Path,
) -> dict[str, Any]:
    """The same of somebody else's images uint8 [N, C, H, W], with labels or without; rank 0 writes
    it to `path`."""
    plan, images, labels = prepared or prepare()
    heard = tick if cluster.is_main else ignore
    own = [images] if labels is None else [images, labels]
    kept = Kept(cluster, path, plan.final)
    with kept.until_stopped():
        final = examiner(cluster, plan, plan.final, most=len(images), tick=heard)
        kept.begin(final, **about, images_digest=digest(*own))
        with final.crew.heard_by(heard):
            final.about(Given(final.scene, images, labels, plan.dataset.classes), kept)
    cluster.barrier()
    return kept.told


def closely_looked_at(plan: Plan) -> frozenset[int]:
    """The rounds of `evaluate.rounds` whose full looks are written down already."""
    folder, rounds = plan.run_dir / FOLDER, plan.settings.evaluate.rounds
    return frozenset(round for round in rounds if (folder / looked_at(round)).is_file())


def run_info(plan: Plan, federation: Federation) -> RunInfo:
    """What observers hear before the first round."""
    pool = federation.pool
    share = plan.settings.federation.clients_in_round() / len(pool)
    return RunInfo(
        run_dir=plan.run_dir,
        settings=plan.settings,
        n_images=tuple(pool.n_images),
        malicious=plan.schedule.clients,
        counts=plan.counts,
        classes=plan.dataset.classes,
        images_in_round=share * sum(map(pool.work, range(len(pool)))),
        world=federation.cluster.world,
        first_round=federation.done + 1,
        labels=place(plan.settings),
    )


def place(settings: Experiment) -> dict[str, Any]:
    """A run's labels and its arm, as loggers tell them."""
    labels = labels_of(settings)
    return {**labels._asdict(), "arm": labels.arm}


def bytes_of_checkpoints(plan: Plan) -> int:
    """Room for the checkpoints kept, the best one and the one being written: a client's networks
    and their two moments each, and the global model and its average."""
    size = sum(tensor.nbytes for network in networks(plan) for tensor in network.parameters())
    return size * (3 * len(plan.parts) + 2) * (plan.settings.checkpoint.keep + 2)
