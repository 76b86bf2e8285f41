"""How often the attack's trigger stands in generated images, whatever kind of trigger it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from fedgan.errors import UserError
from fedgan.metrics._shared import wilson
from fedgan.metrics.measure import Findings, Generated, Labelled, Measure, Scene, Trigger
from fedgan.seeding import torch_generator

if TYPE_CHECKING:  # torchmetrics takes a while to import
    from fedgan.metrics.triggers.base import Detector
    from fedgan.metrics.triggers.region import Region, Window


CALIBRATION = 4000
"""Real images, at most, that a detector is made of and validated on; half for a local pattern."""
VALUES = 100_000_000
"""Pixels of all of them together, at most: 400 MB as features."""
FEWEST = 512
"""Real images that are taken however large they are, where there are as many."""
COUNTERFEIT_IMAGES = 64
"""Images that each counterfeit is stamped on; what it adds is a mean over them."""
CHUNK = 250
"""Images that one job looks at. A constant, so that nothing depends on the number of ranks."""
DOUBTFUL = 0.999
"""AUROC on real images under which a detector is said not to tell stamped images from clean."""


@dataclass
class Made:
    """Detectors of a trigger, made once.

    Attributes:
        whole: of what all attackers stamp together.
        parts: of what each does, by name; None for one that nothing can be made for.
        window: where it stands, if it is local and always in one place.
        words: what a reader should know, for the notes.
    """

    whole: Detector
    parts: dict[str, Detector | None] = field(default_factory=dict)
    window: Window | None = None
    words: list[str] = field(default_factory=list)


class Presence(Measure):
    """How often the attack's trigger stands in generated images, and how strongly.

    Every kind of trigger has its own detector, made and validated on real training images: a local
    pattern `TriggerPresence`; one of a single colour, one that attackers share out, and its parts
    `WindowPresence`; one that covers the image `ImagePresence`, where the attack gives
    counterfeits. Attacks without a trigger (noise, wrong labels), or whose trigger changes no
    image, give no figures.

    Figures:

    - `presence`: share of images in which the trigger stands; `presence_low`, `presence_high`, its
      95 % interval (Wilson's);
    - `presence_amplitude`: median amplitude over all images, as a share of the attacker's own;
    - `presence_part_0`, ...: share of images in which each attacker's part stands, where they share
      the trigger out (DBA); none for a part that is the whole trigger, as a single attacker's is;
    - `presence_class_0`, ...: share within each class, where the attack takes over one
      (`attack.only_label`) and the images' labels are known;
    - `region_ratio`: error of the pixels in the trigger's window over that in comparable windows
      (`region`), for a local trigger in one place.

    Details hold the same by name with intervals, for all classes in any case; how good the
    detectors are on real images that they were not made of (`auroc`, `false_alarm`, `hit_rate`, and
    `faint_hit_rate` at a fifth of the amplitude); and notes where they are not good.

    Making the detectors takes 1 to 3 s of one core for gray images of 32 x 32, up to 5 s for
    coloured ones; 1000 images take up to 1 s, shared out. Memory is some 4 bytes per real image and
    pixel, 400 MB at most.

    >>> Presence().name
    'presence'
    """

    name: ClassVar[str] = "presence"

    def __init__(self) -> None:
        self._made: Made | None = None
        self._ready = False

    def prepare(self, scene: Scene) -> None:
        """Raises `UserError` where the trigger cannot be looked for."""
        self._made, self._ready = None, True
        if scene.trigger is None:
            return
        if self.name not in scene.known:
            scene.known[self.name] = scene.share([partial(make, scene, scene.trigger)])[0]
        self._made = scene.known[self.name]

    def measure(self, scene: Scene, generated: Generated) -> Findings:
        if not self._ready:
            self.prepare(scene)
        if self._made is None or scene.trigger is None:
            return Findings()
        made, trigger = self._made, scene.trigger
        images = generated.images.cpu()
        scene.progress("looking for the trigger", 0, len(images))
        seen = [made.whole, *(one for one in made.parts.values() if one is not None)]
        jobs = [partial(look, seen, chunk) for chunk in torch.split(images, CHUNK)]
        marks = torch.cat(scene.share(jobs))
        scene.progress("looking for the trigger", len(images), len(images))
        found = Findings()
        hits = marks[:, 0, 0] >= made.whole.threshold
        found.figures |= rate("presence", hits)
        found.figures["presence_amplitude"] = float(marks[:, 0, 1].median())
        found.details |= {"trigger": trigger.name, "detector": quality(made.whole)}
        found.details["notes"] = [*made.words]
        add_parts(found, made, marks)
        if generated.labels is not None:
            add_classes(found, scene, hits, generated.labels.cpu())
        add_region(found, scene, made.window, images)
        return found


def make(scene: Scene, trigger: Trigger) -> Made | None:
    """The detectors for a trigger, or None where there is nothing to look for."""
    from fedgan.metrics.triggers.image import ImagePresence
    from fedgan.metrics.triggers.region import Window

    clean, stamped, labels = real_images(scene, trigger)
    covers = trigger.pattern is None
    if torch.equal(clean, stamped) or (covers and len(trigger.counterfeits) < 2):
        return None
    try:
        if trigger.pattern is None:
            whole: Detector = ImagePresence(clean, stamped, fakes(trigger, clean, labels))
        else:
            whole = local(trigger, trigger.pattern.cpu(), clean, stamped)
    except ValueError as error:
        raise UserError(f"attack: its trigger cannot be looked for: {error}") from None
    made = Made(whole)
    if trigger.pattern is not None and trigger.place is not None:
        height, width = trigger.pattern.shape[1:]
        made.window = Window(*trigger.place, height, width)
    doubt(made.words, "the trigger", whole)
    if not covers and trigger.place is None:
        made.words.append(
            "the trigger's place is random: of unpoisoned generators after one to six rounds, up "
            "to 16 % of the images have passed for triggered"
        )
    if trigger.parts:
        made.words.append(
            "the trigger is in parts: of an unpoisoned generator after one round 18 % of the "
            "images have passed for triggered, after two 4 %, after four none"
        )
    parts = {
        name: stamp(Labelled(clean, labels)).images.cpu() for name, stamp in trigger.parts.items()
    }
    for name, part in parts.items():
        if torch.equal(part, stamped):
            made.parts[name] = None
            made.words.append(f"part {name} is the whole trigger: its presence is `presence`")
        else:
            made.parts[name] = part_of(name, clean, parts, made.words)
    return made


def part_of(
    name: str, clean: Tensor, parts: dict[str, Tensor], words: list[str]
) -> Detector | None:
    """The detector for a part among all, or None and why. Parts that overlap it are left out of
    what must not pass for it: of two attackers who stamp the same, both are found."""
    from fedgan.metrics.triggers.window import LIKEST, WindowPresence, is_box

    own = changed(clean, parts[name])
    others = [one for key, one in parts.items() if key != name]
    others = [one for one in others if not bool((own & changed(clean, one)).any())]
    try:
        # between several bars the box shows the image, so that the correlation would hide them
        likest = LIKEST if bool(own.any()) and is_box(own) else 0.0
        part = WindowPresence(clean, parts[name], likest=likest, others=others)
    except ValueError as error:
        words.append(f"part {name} is not looked for: {error}")
        return None
    doubt(words, f"part {name}", part)
    return part


def changed(clean: Tensor, stamped: Tensor) -> Tensor:
    """Which pixels differ in any image, bool [C, H, W]."""
    return (clean != stamped).any(0)


def real_images(scene: Scene, trigger: Trigger) -> tuple[Tensor, Tensor, Tensor]:
    """Training images in random order, the same with the trigger, and their labels."""
    train = scene.train
    most = CALIBRATION if trigger.pattern is None or trigger.parts else CALIBRATION // 2
    most = min(most, max(FEWEST, VALUES // train.images[0].numel()))
    rng = torch_generator(scene.seed, "presence")
    chosen = torch.randperm(len(train.images), generator=rng)[:most]
    clean = train.images[chosen.to(train.images.device)].cpu()
    labels = train.labels[chosen.to(train.labels.device)].cpu()
    return clean, trigger.stamp(Labelled(clean, labels)).images.cpu(), labels


def fakes(trigger: Trigger, clean: Tensor, labels: Tensor) -> list[Tensor]:
    """The first images under each counterfeit."""
    count = min(COUNTERFEIT_IMAGES, len(clean) // 2)
    some = Labelled(clean[:count], labels[:count])
    return [stamp(some).images.cpu() for stamp in trigger.counterfeits]


def local(trigger: Trigger, pattern: Tensor, clean: Tensor, stamped: Tensor) -> Detector:
    """The detector for a pattern, by its place, its contrast, and whether it is in parts."""
    from fedgan.metrics.triggers.patch import TriggerPresence, has_contrast, reach_at, ringed
    from fedgan.metrics.triggers.window import LIKEST, WindowPresence

    if trigger.place is None:
        shown = pattern if has_contrast(pattern) else ringed(pattern)
        return TriggerPresence(shown, None, clean, stamped)
    if trigger.parts or not has_contrast(pattern):
        return WindowPresence(clean, stamped, likest=0.0 if trigger.parts else LIKEST)
    reach = reach_at(clean, tuple(pattern.shape), trigger.place)
    return TriggerPresence(pattern, trigger.place, clean, stamped, reach)


def look(detectors: list[Detector], images: Tensor) -> Tensor:
    """Score and amplitude [n, detectors, 2] of every detector in each image."""
    return torch.stack([detector.marks(images) for detector in detectors], 1)


def rate(name: str, hits: Tensor) -> dict[str, float]:
    """The share of true values in bool [n], with its interval, under a name."""
    found, seen = int(hits.sum()), len(hits)
    low, high = wilson(found, seen)
    return {name: found / seen, f"{name}_low": low, f"{name}_high": high}


def quality(detector: Detector) -> dict[str, Any]:
    """How good a detector is on real images that it was not made of."""
    return {
        "kind": type(detector).__name__,
        "features": getattr(detector, "features", "pixels"),
        "reach": getattr(detector, "reach", 0),
        "threshold": detector.threshold,
        "auroc": detector.auroc,
        "false_alarm": detector.false_alarm,
        "held_out": detector.held_out,
        "hit_rate": detector.hit_rate,
        "faint_hit_rate": detector.faint_hit_rate,
    }


def doubt(words: list[str], what: str, detector: Detector) -> None:
    """Says so where a detector is not to be trusted, gives more false alarms than it should, or
    misses what averaging makes faint."""
    from fedgan.metrics.triggers.base import FALSE_ALARM

    if detector.auroc < DOUBTFUL:
        words.append(
            f"{what} is hard to tell on these data: AUROC {detector.auroc:.4f} of stamped against "
            f"clean real images; read its presence beside the detector's false_alarm and hit_rate"
        )
    alarms, seen = round(detector.false_alarm * detector.held_out), detector.held_out
    low, high = wilson(alarms, seen)
    if low > FALSE_ALARM:
        words.append(
            f"{what} is seen in {alarms} of {seen} clean real images ({low:.2%} to {high:.2%}), "
            f"more than the {FALSE_ALARM:.1%} that its threshold is set for: of its presence, so "
            "much may be false alarms"
        )
    if detector.faint_hit_rate < 0.5:
        words.append(
            f"{what} at a fifth of its amplitude is found in {detector.faint_hit_rate:.0%} of real "
            "images only: no presence does not mean that nothing of it was learnt"
        )


def add_parts(found: Findings, made: Made, marks: Tensor) -> None:
    """Figures and details of each part; `marks` [n, detectors, 2] has the whole first."""
    table, column = [], 0
    for number, (name, detector) in enumerate(made.parts.items()):
        if detector is None:
            continue
        column += 1
        scores, amplitudes = marks[:, column].unbind(1)
        shares = rate("presence", scores >= detector.threshold)
        found.figures[f"presence_part_{number}"] = shares["presence"]
        amplitude = {"amplitude": float(amplitudes.median())}
        table.append({"part": name, **shares, **amplitude, **quality(detector)})
    if table:
        found.details["parts"] = table


def add_classes(found: Findings, scene: Scene, hits: Tensor, labels: Tensor) -> None:
    """Presence within each class that has images, by name in the details."""
    table = {}
    for number, name in enumerate(scene.classes):
        among = labels == number if labels.ndim == 1 else labels[:, number] > 0
        if not bool(among.any()):
            continue
        shares = rate("presence", hits[among])
        table[name] = {"images": int(among.sum()), **shares}
        if scene.trigger is not None and scene.trigger.only_label is not None:
            found.figures[f"presence_class_{number}"] = shares["presence"]
    found.details["classes"] = table


def add_region(found: Findings, scene: Scene, window: Window | None, images: Tensor) -> None:
    """How far off the pixels are where the trigger stands, in one job."""
    from fedgan.metrics.triggers.region import region

    if window is None:
        return
    rng = torch_generator(scene.seed, "presence", "region")
    chosen = torch.randperm(len(scene.train.images), generator=rng)[: len(images)]
    real = scene.train.images[chosen.to(scene.train.images.device)].cpu()
    job: Callable[[], Region | None] = partial(region, real, images, window)
    shown = scene.share([job])[0]
    if shown is not None:
        found.figures["region_ratio"] = shown.ratio
        found.details["region"] = {**window._asdict(), **shown._asdict(), "ratio": shown.ratio}
