"""What a grid will cost: hours from what is finished or from a few steps, and disk."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fedgan.checkpoint import Checkpoints, round_of
from fedgan.grid.cells import Cell
from fedgan.grid.check import NoDataError, Planner, images_to_train_on
from fedgan.grid.folder import Folder, State
from fedgan.plan import Plan
from fedgan.rundir import CHECKPOINTS
from fedgan.runs import SUMMARY
from fedgan.settings import Experiment

TIMED = 0.7
"""Seconds of local steps that are timed, of each kind."""
ABSENT = "absent"
PICTURE = 200_000
"""Bytes of one picture of samples, roughly."""


@dataclass(frozen=True)
class Estimate:
    """What one cell costs.

    Attributes:
        cell, state: which, and how far it is.
        images: that all clients together are shown over all rounds; of a cell that was cut off,
            over those that are left.
        seconds: that it takes; 0 where it is finished.
        disk: bytes of its run directory.
        measured: whether `seconds` is what finished cells of its kind took, looks and all, or local
            steps alone, timed here.
    """

    cell: Cell
    state: State
    images: int
    seconds: float
    disk: int
    measured: bool
    known: bool = True
    """False where the data is not at hand; the figures are then 0."""


@dataclass
class _Known:
    """What is known of a cell before anything is timed."""

    cell: Cell
    state: State
    images: int
    disk: int
    kind: str


def estimates(folder: Folder, threads: int) -> tuple[list[Estimate], list[str]]:
    """The cost of every cell of a grid, with so many threads a cell, and why some is unknown.

    Cells are of one kind that train on the same data with the same networks, loss and batch size.
    The seconds an image takes are those of the finished cells of its kind, or of a few local steps
    on this machine. Writes nothing. Raises `UserError` for a cell that cannot be trained, but for
    want of data.
    """
    known: list[_Known] = []
    finished: dict[str, tuple[float, int]] = {}
    timed: dict[str, float] = {}
    room: dict[str, int] = {}
    absent: dict[str, str] = {}
    planner = Planner()
    for cell in folder.grid.cells:
        state = folder.state(cell)
        try:
            plan = planner(cell, anew=True)
        except NoDataError as error:
            absent.setdefault(cell.labels.data, str(error))
            known.append(_Known(cell, state, 0, 0, ABSENT))
            continue
        kind, images = kind_of(plan.settings), images_to_train_on(plan)
        took = _seconds(cell) if state == "finished" else None
        if took is not None:
            seconds, before = finished.get(kind, (0.0, 0))
            finished[kind] = (seconds + took, before + images)
            known.append(_Known(cell, state, images, size_on_disk(cell.run_dir), kind))
            continue
        images = round(images * (1 - rounds_saved(cell) / plan.settings.federation.rounds))
        if kind not in timed:
            timed[kind] = 0.0 if kind in finished else seconds_per_image(plan, threads)
        size = f"{kind} {len(plan.parts)} {plan.settings.checkpoint}"
        if size not in room:
            room[size] = bytes_of_run(plan)
        known.append(_Known(cell, state, images, room[size], kind))
    return [_estimate(one, finished, timed) for one in known], list(absent.values())


def _estimate(
    one: _Known, finished: dict[str, tuple[float, int]], timed: dict[str, float]
) -> Estimate:
    if one.kind == ABSENT:
        return Estimate(one.cell, one.state, 0, 0.0, 0, measured=False, known=False)
    measured = one.kind in finished
    if one.state == "finished":
        seconds = 0.0
    elif measured:
        total, images = finished[one.kind]
        seconds = one.images * total / images
    else:
        seconds = one.images * timed[one.kind]
    return Estimate(one.cell, one.state, one.images, seconds, one.disk, measured)


def kind_of(settings: Experiment) -> str:
    """Equal for experiments whose local steps cost the same; of settings with defaults filled in.

    >>> kind_of(Experiment(seed=1)) == kind_of(Experiment(seed=2))
    True
    """
    parts: list[Any] = [asdict(part) for part in (settings.data, settings.model, settings.loss)]
    parts += [settings.training.batch_size, settings.cluster.precision]
    return json.dumps(parts, sort_keys=True, default=str)


def seconds_per_image(plan: Plan, threads: int) -> float:
    """How long one image of a local step takes on this machine, with so many CPU threads."""
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment

    from fedgan.assembly import networks
    from fedgan.client import ClientGAN
    from fedgan.data.device import ClientImages
    from fedgan.seeding import torch_generator
    from fedgan.vectors import flatten

    settings = plan.settings
    before = torch.get_num_threads()
    torch.set_num_threads(settings.cluster.threads or threads)
    try:
        kind = settings.cluster.accelerator
        fabric = Fabric(  # one process, whatever has started it
            accelerator=kind,
            devices=1,
            precision=settings.cluster.precision,
            plugins=[LightningEnvironment()],
        )
        generator, discriminator = networks(plan)
        gan = ClientGAN(
            0,
            generator,
            discriminator,
            plan.loss,
            settings.training,
            share_discriminator=True,
            channels_last=settings.cluster.channels_last,
        )
        gan.set_up(fabric)
        device = gan.device
        part = torch.from_numpy(plan.parts[0])
        train = plan.dataset.train
        here = torch.arange(len(part), device=device)
        own = ClientImages(train.images[part].to(device), train.labels[part].to(device), here)
        every = max(1, plan.loss.penalty_every(device))
        rng = torch_generator(settings.seed, "timing", device=device)
        parameters = flatten(generator, discriminator)

        def play(steps: int) -> float:
            batches = list(own.batches(settings.training.batch_size, rng, epochs=1, steps=steps))
            started = time.perf_counter()
            gan.train_round(parameters, batches, rng)[1].sum().item()  # waits for the device
            return (time.perf_counter() - started) / sum(len(labels) for _, labels in batches)

        play(every)  # the first steps allocate and choose algorithms
        pilot = play(every)
        images = every * min(settings.training.batch_size, len(part))
        return play(every * max(1, min(50, round(TIMED / (pilot * images)))))
    finally:
        torch.set_num_threads(before)


def bytes_of_run(plan: Plan) -> int:
    """Room that a run directory needs: checkpoints at their most, and a picture a look."""
    from fedgan.ranks import bytes_of_checkpoints

    every = plan.settings.evaluate.every
    looks = 1 + (plan.settings.federation.rounds // every if every else 0)
    return bytes_of_checkpoints(plan) + (looks + 3) * PICTURE


def rounds_saved(cell: Cell) -> int:
    """How many rounds a cell does not have to play again; 0 where it has no checkpoint."""
    found = Checkpoints(cell.run_dir / CHECKPOINTS, keep=1).all()
    return round_of(found[-1]) if found else 0


def size_on_disk(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def wall_clock(found: Sequence[Estimate], jobs: int) -> float:
    """Seconds until all are done, `jobs` at a time, each begun in order as soon as there is room.

    >>> wall_clock([], 2)
    0.0
    """
    ends = [0.0] * jobs
    for one in found:
        if one.state != "finished":
            ends[ends.index(min(ends))] += one.seconds
    return max(ends)


def _seconds(cell: Cell) -> float | None:
    try:
        told = json.loads((cell.run_dir / SUMMARY).read_text(encoding="utf-8"))
        return float(told["seconds"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
