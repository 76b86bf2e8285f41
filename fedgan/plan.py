"""Plan: the parts of an experiment, built and checked before anything is trained or written."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgan.attacks.base import Attack, NoAttack
from fedgan.attacks.schedule import Schedule
from fedgan.checks import check_settings
from fedgan.components import build, find, python_path
from fedgan.data import find_source
from fedgan.data.base import Dataset, Source, Split
from fedgan.data.partition import counts as count_labels
from fedgan.data.partition import partition
from fedgan.defenses.base import Defense
from fedgan.devices import resolve_accelerator, threads
from fedgan.errors import UserError
from fedgan.metrics import find_encoder
from fedgan.metrics.base import Encoder
from fedgan.models.base import AdversarialLoss, ImageShape, Pair
from fedgan.settings import Component, Experiment, as_component

FEWEST_IMAGES = 16
"""Fewer cannot be measured: a distance needs two halves of 8 real images."""


@dataclass
class Plan:
    """What `make_plan` found: settings with every default filled in, and the parts they name."""

    settings: Experiment
    dataset: Dataset
    """Training images as the clients' own equipment took them."""
    parts: list[np.ndarray]
    """Indices of the training images of each client."""
    counts: list[list[int]]
    """Images of each class that each client holds."""
    shape: ImageShape
    pair: Pair
    loss: AdversarialLoss
    attack: Attack
    schedule: Schedule
    defense: Defense
    final_encoder: Encoder
    watch_encoder: Encoder

    @property
    def run_dir(self) -> Path:
        return Path(self.settings.run_dir or "runs/experiment")


def rooms() -> dict[str, tuple[str, type[Any]]]:
    """Where each kind of component lives, and what it derives from, by its key in the config."""
    return {
        "data": ("fedgan.data", Source),
        "model": ("fedgan.models", Pair),
        "loss": ("fedgan.models", AdversarialLoss),
        "attack": ("fedgan.attacks", Attack),
        "defense": ("fedgan.defenses", Defense),
        "evaluate.encoder": ("fedgan.metrics", Encoder),
    }


def make_plan(settings: Experiment) -> Plan:
    """Builds and checks all parts. Cheap checks come first, the data after them.

    Fills in `settings.data.size` and every component's default `init_args`. Raises `UserError` for
    whatever the user can mend.
    """
    check_settings(settings)
    settings.cluster.accelerator = resolve_accelerator(settings.cluster)
    settings.cluster.threads = threads(settings.cluster)
    with _class_paths(settings):
        pair: Pair = _component("model", settings.model)
        loss: AdversarialLoss = _component("loss", settings.loss)
        attack: Attack = _component("attack", settings.attack)
        defense: Defense = _component("defense", settings.defense)
        look = settings.evaluate
        look.watch_encoder, watch = _encoder("evaluate.watch_encoder", look.watch_encoder)
        look.encoder, final = _encoder("evaluate.encoder", look.encoder)
    if "every" in settings.loss.init_args:  # for a resume on another kind of machine
        loss.every = loss.penalty_every(torch.device(settings.cluster.accelerator))
        settings.loss.init_args["every"] = loss.every
    defense.check(settings.federation.clients_in_round())

    dataset, parts, counts = plan_data(settings)
    shape = ImageShape(dataset.channels, dataset.size, len(dataset.classes))
    with torch.device("meta"):
        pair.build(shape)  # only to hear whether it can draw this size
    attack.check(shape.channels, shape.size)
    # With a rate of 0 nobody poisons, but the trigger is still looked for: the clean arm.
    nobody = isinstance(attack, NoAttack) or settings.attack.poison_rate == 0
    poisoners = () if nobody else settings.attack.clients
    for client in poisoners:
        if round(settings.attack.poison_rate * len(parts[client])) == 0:
            raise UserError(
                f"attack.poison_rate: {settings.attack.poison_rate} of client {client}'s "
                f"{len(parts[client])} images is none; 0 stands for a run without an attack"
            )
    return Plan(
        settings=settings,
        dataset=dataset,
        parts=parts,
        counts=counts,
        shape=shape,
        pair=pair,
        loss=loss,
        attack=attack,
        schedule=Schedule(
            frozenset(poisoners), settings.attack.from_round, settings.attack.until_round
        ),
        defense=defense,
        final_encoder=final,
        watch_encoder=watch,
    )


def plan_data(settings: Experiment) -> tuple[Dataset, list[np.ndarray], list[list[int]]]:
    """The data set as the clients' own equipment took it, who holds which training images, and how
    many of each class. Fills in `settings.data.size`. Raises `UserError` as `make_plan` does."""
    with _class_paths(settings):
        source = find_source(settings.data)
    dataset = source.load(settings.data.path, settings.data.size, settings.seed)
    settings.data.size = dataset.size
    if settings.data.path is not None:  # so that the run can be resumed from any folder
        settings.data.path = str(Path(settings.data.path).expanduser().absolute())
    if len(dataset.train) < FEWEST_IMAGES:
        raise UserError(
            f"data: {len(dataset.train)} training images; there must be at least {FEWEST_IMAGES}"
        )
    labels, clients = dataset.train.labels, settings.federation.clients
    parts = partition(labels, settings.partition, clients, settings.seed)
    table = count_labels(parts, labels, len(dataset.classes))
    return _acquire(dataset, source, parts, settings.seed), parts, table.tolist()


def _class_paths(settings: Experiment) -> AbstractContextManager[None]:
    return python_path(*map(Path, settings.python_path), Path.cwd())


def _component(key: str, choice: Component) -> Any:
    room, base = rooms()[key]
    return build(key, choice, find(key, choice, room, base))


def _encoder(key: str, choice: str | dict[str, Any]) -> tuple[str | dict[str, Any], Encoder]:
    """An encoder, and what config.yaml is to say of it: its mapping with every argument."""
    component = as_component(choice)
    encoder = find_encoder(key, component)
    mapping = {k: v for k, v in asdict(component).items() if v not in (None, {})}
    return (mapping if len(mapping) > 1 else choice), encoder


def _acquire(dataset: Dataset, source: Source, parts: list[np.ndarray], seed: int) -> Dataset:
    """The data set with each client's training images as its own equipment takes them."""
    if type(source).acquire is Source.acquire:
        return dataset
    images = dataset.train.images.clone()
    for client, part in enumerate(parts):
        index = torch.from_numpy(part)
        images[index] = source.acquire(images[index], client, seed)
    return replace(dataset, train=Split(images, dataset.train.labels))
