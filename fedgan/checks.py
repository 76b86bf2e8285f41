"""Values of the vocabulary that are of the right type and still make no sense."""

from __future__ import annotations

import math
from typing import Any

from fedgan.errors import UserError
from fedgan.settings import Attack, Experiment, Federation


def check_settings(settings: Experiment) -> None:
    """Raises `UserError` for the first value out of range: its key, it, and what is allowed."""
    federation, attack, training = settings.federation, settings.attack, settings.training
    _at_least("seed", settings.seed, 0)
    _at_least("federation.clients", federation.clients, 1)
    _at_least("federation.rounds", federation.rounds, 1)
    _at_least("federation.local_epochs", federation.local_epochs, 1)
    _at_least("federation.local_steps", federation.local_steps, 1)
    _within("federation.sample", federation.sample, 0, 1, open_below=True)
    _within("federation.ema", federation.ema, 0, 1, open_above=True)
    if federation.client_timeout is not None:
        _above("federation.client_timeout", federation.client_timeout, 0)
    _within("federation.dropout", federation.dropout, 0, 1, open_above=True)
    drawn = federation.clients_in_round()
    if not 1 <= federation.min_clients <= drawn:
        raise UserError(
            f"federation.min_clients: {federation.min_clients} is not between 1 and the {drawn} "
            "clients drawn in a round"
        )
    _at_least("data.size", settings.data.size, 1)
    _above("partition.alpha", settings.partition.alpha, 0)
    _at_least("partition.classes_per_client", settings.partition.classes_per_client, 1)
    _at_least("partition.min_images", settings.partition.min_images, 1)
    _at_least("training.batch_size", training.batch_size, 1)
    _above("training.generator_lr", training.generator_lr, 0)
    _above("training.discriminator_lr", training.discriminator_lr, 0)
    _within("training.lr_end_factor", training.lr_end_factor, 0, 1, open_below=True)
    for i, beta in enumerate(training.betas):
        _within(f"training.betas[{i}]", beta, 0, 1, open_above=True)
    _within("training.translate", training.translate, 0, 0.5)
    _within("training.cutout", training.cutout, 0, 1)
    _at_least("evaluate.every", settings.evaluate.every, 0)
    _at_least("evaluate.samples", settings.evaluate.samples, 8)
    _at_least("evaluate.watch_samples", settings.evaluate.watch_samples, 8)
    for round in settings.evaluate.rounds:
        if not 1 <= round <= federation.rounds:
            raise UserError(
                f"evaluate.rounds: {round} is no round; there are 1 to {federation.rounds}"
            )
    _at_least("evaluate.batch_size", settings.evaluate.batch_size, 1)
    _at_least("checkpoint.every", settings.checkpoint.every, 0)
    _at_least("checkpoint.keep", settings.checkpoint.keep, 1)
    _at_least("cluster.devices", settings.cluster.devices, 1)
    _at_least("cluster.nodes", settings.cluster.nodes, 1)
    _at_least("cluster.threads", settings.cluster.threads, 1)
    if settings.defense.by_network() and federation.share != "both":
        key = "discriminator" if settings.defense.discriminator else "per_network"
        raise UserError(f"defense.{key}: federation.share is generator; there is one network")
    _check_attack(attack, federation)


def _check_attack(attack: Attack, federation: Federation) -> None:
    _within("attack.poison_rate", attack.poison_rate, 0, 1)
    _at_least("attack.from_round", attack.from_round, 1)
    _at_least("attack.until_round", attack.until_round, attack.from_round)
    if (attack.on_rounds is None) != (attack.off_rounds is None):
        missing = "on" if attack.on_rounds is None else "off"
        raise UserError(f"attack.{missing}_rounds: is null; on_rounds and off_rounds go together")
    _at_least("attack.on_rounds", attack.on_rounds, 1)
    _at_least("attack.off_rounds", attack.off_rounds, 1)
    _at_least("attack.only_label", attack.only_label, 0)
    _at_least("attack.hide", attack.hide, 0)
    if attack.share is not None:
        _within("attack.share", attack.share, 0, 1, open_below=True, open_above=True)
    of_images = attack.name != "none" or attack.class_path is not None
    if attack.hide and not of_images:
        raise UserError("attack.hide: attack.name is none, so that there is nothing to hide")
    if attack.only_label is not None and not of_images:
        raise UserError(
            f"attack.only_label: is {attack.only_label}, but attack.name is none, so that no image "
            "is poisoned; it must be null"
        )
    if of_images or attack.beyond_images():
        if attack.from_round > federation.rounds:
            raise UserError(
                f"attack.from_round: {attack.from_round} is after the last round; it must be at "
                f"most federation.rounds, {federation.rounds}"
            )
        _check_attackers(attack, federation.clients)


def _check_attackers(attack: Attack, clients: int) -> None:
    if attack.share is not None:
        if clients == 1:
            raise UserError("attack.share: of 1 client none may be malicious; leave one benign")
        return
    attackers = attack.clients
    if not attackers:
        raise UserError(
            "attack.clients: is empty; attack.poison_rate=0 stands for a run without an attack"
        )
    for client in attackers:
        if not 0 <= client < clients:
            raise UserError(
                f"attack.clients: there is no client {client}; clients are 0 to {clients - 1}"
            )
    if len(set(attackers)) != len(attackers):
        raise UserError(f"attack.clients: {attackers} names a client twice")
    if len(attackers) == clients:
        raise UserError(
            f"attack.clients: all {clients} clients are malicious; leave at least one benign"
        )


def _at_least(key: str, value: Any, least: int) -> None:
    if value is not None and value < least:
        raise UserError(f"{key}: {value} is too small; it must be at least {least}")


def _above(key: str, value: float, bound: float) -> None:
    if not (value > bound and math.isfinite(value)):
        raise UserError(f"{key}: {value}; it must be a number above {bound}")


def _within(
    key: str,
    value: float,
    low: float,
    high: float,
    *,
    open_below: bool = False,
    open_above: bool = False,
) -> None:
    fits_below = value > low if open_below else value >= low
    fits_above = value < high if open_above else value <= high
    if not (fits_below and fits_above):
        left, right = "(" if open_below else "[", ")" if open_above else "]"
        raise UserError(f"{key}: {value} is not in {left}{low}, {high}{right}")
