"""Plan: the parts of an experiment, built and checked before anything is trained or written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedgan.attacks.base import Attack, NoAttack, eligible
from fedgan.attacks.reports import ReportAttack
from fedgan.attacks.schedule import Schedule, draw_attackers
from fedgan.attacks.updates import UpdateAttack
from fedgan.checks import check_settings
from fedgan.choices import Look, beyond_images, component, defenses, looks
from fedgan.components import python_path
from fedgan.data import find_source
from fedgan.data.base import Dataset, Source, Split
from fedgan.data.partition import counts as count_labels
from fedgan.data.partition import partition
from fedgan.defenses.base import Defense
from fedgan.defenses.detected import per_network
from fedgan.devices import resolve_accelerator, threads
from fedgan.errors import UserError
from fedgan.models.base import AdversarialLoss, ImageShape, Pair
from fedgan.seeding import draw_clients
from fedgan.settings import Attack as AttackSettings
from fedgan.settings import Experiment
from fedgan.vectors import shared_tensors

log = logging.getLogger(__name__)
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
    update_attacks: list[UpdateAttack]
    report_attack: ReportAttack | None
    schedule: Schedule
    defense: Defense
    final: Look
    watch: Look

    @property
    def run_dir(self) -> Path:
        return Path(self.settings.run_dir or "runs/experiment")


def load(source: Source, settings: Experiment) -> Dataset:
    """The data set that the settings name."""
    return source.load(settings.data.path, settings.data.size, settings.seed)


def make_plan(settings: Experiment, load: Callable[[Source, Experiment], Dataset] = load) -> Plan:
    """Builds and checks all parts. Cheap checks come first, the data after them, by `load`.

    Fills in `settings.data.size`, the malicious clients where a share is drawn, and every
    component's default `init_args`. Raises `UserError` for whatever the user can mend.
    """
    check_settings(settings)
    settings.cluster.accelerator = resolve_accelerator(settings.cluster)
    settings.cluster.threads = threads(settings.cluster)
    with class_paths(settings):
        pair: Pair = component("model", settings.model)
        loss: AdversarialLoss = component("loss", settings.loss)
        attack: Attack = component("attack", settings.attack)
        update_attacks, report_attack = beyond_images(settings, attack)
        rules = defenses(settings)
        watch, final = looks(settings)
    if "every" in settings.loss.init_args:  # for a resume on another kind of machine
        loss.every = loss.penalty_every(torch.device(settings.cluster.accelerator))
        settings.loss.init_args["every"] = loss.every
    for one in rules:
        one.check(settings.federation.clients_in_round())
        one.check_clients(settings.federation.clients)
        _ask_for_penalty(settings, loss, one)

    dataset, parts, counts = plan_data(settings, load)
    shape = ImageShape(dataset.channels, dataset.size, len(dataset.classes))
    with torch.device("meta"):
        networks = pair.build(shape)  # to hear whether it can draw this size, and how large it is
    sizes = [sum(tensor.numel() for tensor in shared_tensors(one)) for one in networks]
    defense = per_network(rules, sizes) if len(rules) > 1 else rules[0]
    attack.check(shape.channels, shape.size, shape.classes)
    schedule = _schedule(settings, attack, dataset, parts)
    _warn_of_idle_attacks(settings, schedule, update_attacks)
    return Plan(
        settings=settings,
        dataset=dataset,
        parts=parts,
        counts=counts,
        shape=shape,
        pair=pair,
        loss=loss,
        attack=attack,
        update_attacks=update_attacks,
        report_attack=report_attack,
        schedule=schedule,
        defense=defense,
        final=final,
        watch=watch,
    )


def plan_data(
    settings: Experiment, load: Callable[[Source, Experiment], Dataset] = load
) -> tuple[Dataset, list[np.ndarray], list[list[int]]]:
    """The data set as the clients' own equipment took it, who holds which training images, and how
    many of each class. Fills in `settings.data.size`. Raises `UserError` as `make_plan` does."""
    with class_paths(settings):
        source = find_source(settings.data)
    dataset = load(source, settings)
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


def _schedule(
    settings: Experiment, attack: Attack, dataset: Dataset, parts: list[np.ndarray]
) -> Schedule:
    """Who attacks, and when. Fills in `settings.attack.clients` where a share is drawn."""
    how = settings.attack
    of_images = not isinstance(attack, NoAttack)
    if how.share is not None and (of_images or how.beyond_images()):
        how.clients = draw_attackers(how.share, settings.federation.clients, settings.seed)
    if how.only_label is not None and how.only_label >= len(dataset.classes):
        raise UserError(
            f"attack.only_label: there is no class {how.only_label}; "
            f"classes are 0 to {len(dataset.classes) - 1}"
        )
    # With a rate of 0 nobody attacks, but the trigger is still looked for: the clean arm.
    somebody = (of_images or how.beyond_images()) and how.poison_rate > 0
    attackers = how.clients if somebody else ()
    for client in attackers if of_images else ():
        _check_images(how, attack, client, dataset.train.labels[parts[client]])
    return Schedule(
        frozenset(attackers), how.from_round, how.until_round, how.on_rounds, how.off_rounds
    )


def _check_images(how: AttackSettings, attack: Attack, client: int, labels: Tensor) -> None:
    """Raises `UserError` where a malicious client with these labels would poison no image."""
    images = "images" if how.only_label is None else f"images of class {how.only_label}"
    among = eligible(labels, how.only_label)
    found, changed = int(among.sum()), int((among & attack.affects(labels)).sum())
    if found == 0:
        raise UserError(f"attack.only_label: malicious client {client} has no {images}")
    if changed == 0:
        raise UserError(
            f"attack: {attack.name} changes none of malicious client {client}'s {found} {images}"
        )
    if round(how.poison_rate * changed) == 0:
        images += f" that {attack.name} changes" if changed < found else ""
        raise UserError(
            f"attack.poison_rate: {how.poison_rate} of client {client}'s "
            f"{changed} {images} is none; 0 stands for a run without an attack"
        )


def _warn_of_idle_attacks(
    settings: Experiment, schedule: Schedule, updates: list[UpdateAttack]
) -> None:
    """Warns of attacks that will do nothing, and are yet written down as attacks."""
    how, federation = settings.attack, settings.federation
    if how.poison_rate == 0 and how.beyond_images():
        log.warning("attack.poison_rate: is 0: nobody attacks updates or reports either")
    if not schedule.clients:
        return
    n, most = federation.clients_in_round(), 0
    for round in range(1, federation.rounds + 1):
        if schedule.attackers(schedule.clients, round):
            drawn = draw_clients(settings.seed, round, federation.clients, n)
            most = max(most, len(schedule.attackers(drawn, round)))
    if most == 0:
        log.warning("attack.clients: none is drawn in any round of the attack: nobody attacks")
        return
    for i, attack in enumerate(updates):
        doubt = attack.doubt(n, most, updates[:i])
        if doubt is not None:
            log.warning("attack.update: %s: %s", attack.name, doubt)


def class_paths(settings: Experiment) -> AbstractContextManager[None]:
    """Within, the config's class paths can be imported."""
    return python_path(*map(Path, settings.python_path), Path.cwd())


def _ask_for_penalty(settings: Experiment, loss: AdversarialLoss, defense: Defense) -> None:
    """Gives the clients' loss the gradient penalty that the defence asks for, if it asks for one.

    Fills in `settings.loss.init_args`, so that config.yaml says what was trained with. A penalty
    that the loss has already stays as it is. Raises `UserError` for a loss that can have none.
    """
    asked = defense.penalties()
    if not asked:
        return
    name, argument = settings.loss.class_path or settings.loss.name, loss.penalty_argument
    if argument not in asked:
        if type(loss).penalty is AdversarialLoss.penalty:
            raise UserError(f"defense: the loss {name} has no gradient penalty to switch on")
        log.warning("the loss %s keeps its own gradient penalty", name)
        return
    own = getattr(loss, argument)
    if own == 0:
        setattr(loss, argument, asked[argument])
        settings.loss.init_args[argument] = asked[argument]
    elif own != asked[argument]:
        log.warning(
            "the loss %s keeps its own gradient penalty: %s is %s, the defence asks for %s",
            *(name, argument, own, asked[argument]),
        )


def _acquire(dataset: Dataset, source: Source, parts: list[np.ndarray], seed: int) -> Dataset:
    """The data set with each client's training images as its own equipment takes them."""
    if type(source).acquire is Source.acquire:
        return dataset
    images = dataset.train.images.clone()
    for client, part in enumerate(parts):
        index = torch.from_numpy(part)
        images[index] = source.acquire(images[index], client, seed)
    return replace(dataset, train=Split(images, dataset.train.labels))
