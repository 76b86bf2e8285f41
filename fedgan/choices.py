"""The components that a config chooses, made, and what config.yaml is to say of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from fedgan.attacks.base import Attack, NoAttack
from fedgan.attacks.reports import ReportAttack
from fedgan.attacks.updates import UpdateAttack
from fedgan.components import build, find
from fedgan.data.base import Source
from fedgan.defenses.api import make_defense
from fedgan.defenses.base import Defense, Stage
from fedgan.defenses.detected import Detected, per_network
from fedgan.errors import UserError, did_you_mean
from fedgan.metrics.base import Encoder
from fedgan.metrics.measure import Measure
from fedgan.models.base import AdversarialLoss, Pair
from fedgan.settings import Component, Evaluate, Experiment, as_component


@dataclass
class Look:
    """How generated images are looked at, on the way or at the end."""

    encoders: list[Encoder]
    measures: list[Measure]
    samples: int


def rooms() -> dict[str, tuple[str, type[Any]]]:
    """Where each kind of component lives, and what it derives from, by its key in the config."""
    return {
        "data": ("fedgan.data", Source),
        "model": ("fedgan.models", Pair),
        "loss": ("fedgan.models", AdversarialLoss),
        "attack": ("fedgan.attacks", Attack),
        "attack.update": ("fedgan.attacks", UpdateAttack),
        "attack.report": ("fedgan.attacks", ReportAttack),
        "defense": ("fedgan.defenses", Stage),
        "evaluate.encoder": ("fedgan.metrics", Encoder),
        "evaluate.measures": ("fedgan.metrics", Measure),
    }


def component(room: str, choice: Component, key: str | None = None) -> Any:
    """The component of a room that `choice` names, from its key in the config; see `chosen`."""
    package, base = rooms()[room]
    key = key or room
    return build(key, choice, find(key, choice, package, base))


def chosen(room: str, choice: Any, key: str | None = None) -> tuple[Any, Any]:
    """What config.yaml is to say of a component of a room that a name or a mapping chooses, and the
    component. `key` is where the choice stands, if not at the room's own key."""
    key = key or room
    known = [item.name for item in fields(Component)]
    for name in choice if isinstance(choice, dict) else ():  # config.py does not look into lists
        if name not in known:
            raise UserError(f"{key}.{name}: unknown key{did_you_mean(name, known)}")
    asked = as_component(choice)
    if asked.name is None and asked.class_path is None:
        raise UserError(f"{key}.name: is missing")
    made = component(room, asked, key)
    mapping = _written(asked)
    return (mapping if len(mapping) > 1 else choice), made


def _written(component: Component) -> dict[str, Any]:
    """The mapping that config.yaml is to hold of a component."""
    return {k: v for k, v in asdict(component).items() if v not in (None, {})}


def beyond_images(
    settings: Experiment, of_images: Attack
) -> tuple[list[UpdateAttack], ReportAttack | None]:
    """The attacks on updates, in their order, and the one on reports. Writes every argument into
    `settings`."""
    attack = settings.attack
    updates: list[UpdateAttack] = []
    if attack.update:
        several = attack.update if isinstance(attack.update, list) else [attack.update]
        pairs = [chosen("attack.update", choice) for choice in several]
        choices, updates = [choice for choice, _ in pairs], [made for _, made in pairs]
        attack.update = choices if isinstance(attack.update, list) else choices[0]
    for one in (one for one in updates if one.needs_discriminators):
        if settings.federation.share != "both":
            raise UserError(
                f"attack.update: {one.name} poisons discriminators, but federation.share is "
                f"{settings.federation.share}, so that they stay at home; it must be both"
            )
        if isinstance(of_images, NoAttack):
            raise UserError(
                f"attack.update: {one.name} hands in discriminators that have seen poisoned "
                "images, but attack.name is none, so that none is poisoned"
            )
    for before, one in pairwise(updates):
        if one.replaces:
            raise UserError(
                f"attack.update: {one.name} takes the place of whatever comes before it, and "
                f"{before.name} would be lost; it must be the first"
            )
    report = None
    if attack.report:
        attack.report, report = chosen("attack.report", attack.report)
        if report.needs_honest_losses and isinstance(of_images, NoAttack):
            raise UserError(
                f"attack.report: {report.name} reports the losses of images that are not poisoned, "
                "but attack.name is none, so that none is; it must be null"
            )
    return updates, report


def defenses(settings: Experiment) -> list[Defense]:
    """The defence, or, where they are judged apart, the generator's and the discriminator's."""
    how = settings.defense
    theirs = [as_component(rule) for rule in how.discriminator]
    made = [_defense(settings)]
    if theirs:
        made.append(make_defense(theirs, "defense.discriminator"))
        if isinstance(made[-1], Detected):
            raise UserError(
                f"defense.discriminator: {made[-1].detector.name} judges clients by both networks; "
                "it belongs into defense.rules"
            )
        how.discriminator = [_written(rule) for rule in theirs]
    elif how.per_network:  # a defence has a memory: each needs its own
        made.append(_defense(settings))
    if len(made) > 1:
        per_network(made, [])  # refuses what cannot work together, before data are read
    return made


def _defense(settings: Experiment) -> Defense:
    """The defence that `name` or `rules` choose."""
    how = settings.defense
    if not how.rules:
        return make_defense([how])
    rules = [as_component(rule) for rule in how.rules]
    defense = make_defense(rules, "defense.rules")
    how.rules = [_written(rule) for rule in rules]
    how.name, how.class_path, how.init_args = "none", None, {}
    return defense


def looks(settings: Experiment) -> tuple[Look, Look]:
    """What looks at the generator on the way, and at the end. Writes every argument into
    `settings`."""
    look = settings.evaluate
    look.watch_encoder, watch = chosen(
        "evaluate.encoder", look.watch_encoder, "evaluate.watch_encoder"
    )
    several = look.encoder if isinstance(look.encoder, list) else [look.encoder]
    if not several:
        raise UserError("evaluate.encoder: is empty; it must name an encoder")
    pairs = [chosen("evaluate.encoder", choice) for choice in several]
    choices, final = [choice for choice, _ in pairs], [made for _, made in pairs]
    _refuse_twice("evaluate.encoder", [encoder.name for encoder in final])
    look.encoder = choices if isinstance(look.encoder, list) else choices[0]
    look.watch_measures, on_the_way = _measures("evaluate.watch_measures", look.watch_measures)
    look.measures, at_the_end = _measures("evaluate.measures", look.measures)
    return (
        Look([watch], on_the_way, look.watch_samples),
        Look(final, at_the_end, look.samples),
    )


def ask_for(look: Evaluate, encoders: Sequence[str], measures: Sequence[str]) -> None:
    """Puts encoders and measures that a command names, by short name or class path, in the place of
    the config's; what the config says of those of the same name stays in force."""

    def picked(room: str, names: Sequence[str], there: Sequence[Any]) -> list[Any]:
        known: dict[str, Any] = {}
        for choice in there:
            asked, made = as_component(choice), chosen(room, choice)[1]
            known |= {made.name: choice, str(asked.class_path): choice}
        own = {name: {"class_path": name} for name in names if "." in name}
        return [{**own, **known}.get(name, name) for name in names]

    if encoders:
        there = look.encoder if isinstance(look.encoder, list) else [look.encoder]
        found = picked("evaluate.encoder", encoders, [look.watch_encoder, *there])
        look.encoder = found if len(found) > 1 else found[0]
    if measures:
        look.measures = picked("evaluate.measures", measures, look.measures)


def _measures(key: str, choices: list[Any]) -> tuple[list[Any], list[Measure]]:
    pairs = [chosen("evaluate.measures", choice, key) for choice in choices]
    _refuse_twice(key, [made.name for _, made in pairs])
    return [choice for choice, _ in pairs], [made for _, made in pairs]


def _refuse_twice(key: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{key}: {name} is named twice")
