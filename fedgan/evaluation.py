"""Looking at generated images: one scene, and the chapters that are written about it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from fedgan.cluster import Cluster
from fedgan.errors import UserError
from fedgan.generated import FromGenerator, Latents
from fedgan.metrics._shared import digest
from fedgan.metrics.fidelity import distance_name
from fedgan.metrics.measure import Findings, Generated, Labelled, Measure, Scene, Tick, ignore
from fedgan.metrics.real import DRAWN
from fedgan.models.base import Generator

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """What all measures of a look have found, the same on every rank.

    Attributes:
        figures: single numbers by name.
        names: the figures of each measure.
        details: whatever else each measure has found.
        pictures: uint8 [C, H, W] by name.
        shown: the pictures of each measure.
        failed: the measures that could not be taken, and why, in a line.
    """

    figures: dict[str, float] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    shown: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, measure: str, found: Findings) -> None:
        """Raises `ValueError` where another measure has claimed a name already."""
        twice = sorted({*found.figures} & {*self.figures} or {*found.pictures} & {*self.pictures})
        if twice:
            raise ValueError(f"{twice[0]} is another measure's already")
        self.figures |= found.figures
        self.pictures |= found.pictures
        self.names[measure], self.shown[measure] = list(found.figures), list(found.pictures)
        if found.details:
            self.details[measure] = found.details


Keep = Callable[[Evaluation], None]
"""Given what has been found so far, after each measure, on every rank."""


def forget(found: Evaluation) -> None:
    """Keeps nothing before the end."""


class JobFailedError(Exception):
    """A job that the ranks shared has failed on one of them: type and message of its error."""


class Crew:
    """The ranks as a crew that measures share their work out to."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.tick: Tick = ignore

    def share(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Job i is done on rank i modulo their number; all results, in order, on every rank.

        Where jobs fail, every rank raises the error of the first of them: a `UserError`, or
        `JobFailedError`.
        """
        world = self.cluster.world
        mine: list[Any] = []
        for job in jobs[self.cluster.rank :: world]:
            self.cluster.check()  # raises where another rank has failed
            try:
                mine.append((job(), None))
            except Exception as error:  # the others must hear of it before they wait for results
                log.debug("a shared job failed", exc_info=True)
                mine.append((None, _told(error)))
        parts = [mine] if world == 1 else self.cluster.all_gather_objects(mine)
        every = [parts[i % world][i // world] for i in range(len(jobs))]
        failures = [failure for _, failure in every if failure is not None]
        if failures:
            raise failures[0]
        return [result for result, _ in every]

    def progress(self, what: str, done: int, total: int) -> None:
        self.tick(what, done, total)

    @contextmanager
    def heard_by(self, tick: Tick) -> Iterator[None]:
        """Within, `tick` is told of all progress."""
        before, self.tick = self.tick, tick
        try:
            yield
        finally:
            self.tick = before


def _told(error: Exception) -> Exception:
    """An error as it can be sent to another rank."""
    if isinstance(error, UserError):
        return UserError(str(error))
    return JobFailedError(f"{type(error).__name__}: {' '.join(str(error).split())}")


class Examiner:
    """Measures a generator.

    Args:
        scene: everything real.
        measures: the chapters, in order; prepared by `prepare`.
        latents: what a generator's images are made from, `scene.samples` of them.
        crew: the ranks.
        asked: images that were asked for; there may be too few real ones for so many.
    """

    def __init__(
        self,
        scene: Scene,
        measures: Sequence[Measure],
        latents: Latents,
        crew: Crew,
        asked: int = 0,
    ) -> None:
        self.scene = scene
        self.measures = measures
        self.latents = latents
        self.crew = crew
        self.asked = asked

    def prepare(self) -> None:
        """All that can be done, and can be missing, before there is anything to measure."""
        for measure in self.measures:
            measure.prepare(self.scene)

    @property
    def distance(self) -> str:
        """Name of the figure by which generators are ranked: the Frechet distance."""
        return distance_name(self.scene.encoders[0].name)

    def settings(self) -> dict[str, Any]:
        """All that the figures depend on beside the generated images, for summary.json."""
        return {
            "encoders": [
                {"name": one.name, "fingerprint": one.fingerprint, **one.details()}
                for one in self.scene.encoders
            ],
            "samples": self.scene.samples,
            "batch_size": self.scene.batch_size,
            "seed": self.scene.seed,
            "halves": DRAWN,
            "real": self._real(),
            "measures": [measure.name for measure in self.measures],
        }

    def _real(self) -> str:
        """A hash of all real images and labels, and of what the trigger does to some."""
        scene = self.scene
        if "digest" not in scene.known:
            parts = [part for split in (scene.train, scene.val, scene.test) for part in split]
            if scene.trigger is not None:
                some = Labelled(scene.train.images[:8].cpu(), scene.train.labels[:8].cpu())
                parts += [*scene.trigger.stamp(some)]
            scene.known["digest"] = digest(*parts)
        return str(scene.known["digest"])

    def measure(self, generator: Generator, tick: Tick = ignore, keep: Keep = forget) -> Evaluation:
        """Every figure of a generator's images. Every rank takes part."""
        with self.crew.heard_by(tick):
            if not any(measure.needs_generated for measure in self.measures):
                return self.about(None, keep)
            return self.about(FromGenerator(self.scene, generator, self.latents), keep)

    def about(self, generated: Generated | None, keep: Keep = forget) -> Evaluation:
        """Every figure of any images. A measure that fails is told, and costs no other its own.
        `keep` is given what there is after each measure."""
        found = Evaluation()
        for measure in self.measures:
            line = self._take(measure, generated, found)
            if line is not None:
                found.failed[measure.name] = line
            keep(found)
        return found

    def _take(self, measure: Measure, generated: Generated | None, found: Evaluation) -> str | None:
        """Adds what a measure finds; where it fails, says why."""
        try:
            part = measure.measure(self.scene, generated)  # type: ignore[arg-type]
            found.add(measure.name, part)
        except Exception as error:
            # What a measure raises, all ranks meet alike; a RuntimeError may be a lost rank.
            if isinstance(error, RuntimeError) and self.crew.cluster.world > 1:
                raise
            line = " ".join(str(error).split()) or type(error).__name__
            log.warning("measure %s: %s", measure.name, line, exc_info=_unforeseen(error))
            return line
        return None

    def notes(self) -> list[str]:
        """What a reader of the figures should know beside what the measures themselves say."""
        if self.scene.samples >= self.asked:
            return []
        return [
            f"measured on {self.scene.samples} images, not {self.asked}: there are "
            f"{len(self.scene.train.images)} real ones, and the floors need two halves"
        ]

    def told(self, evaluation: Evaluation) -> dict[str, Any]:
        """What evaluation.json says of it, and of no measure that was not taken yet."""
        taken = evaluation.names.keys() | evaluation.failed.keys()
        measures = [measure.name for measure in self.measures if measure.name in taken]
        return {
            "figures": evaluation.figures,
            "names": evaluation.names,
            "details": evaluation.details,
            "failed": evaluation.failed,
            "pictures": evaluation.shown,
            "notes": self.notes(),
            "final": {**self.settings(), "measures": measures},
        }


def _unforeseen(error: Exception) -> bool:
    """Whether a traceback helps: not for what the user can mend."""
    return not isinstance(error, (UserError, JobFailedError))
