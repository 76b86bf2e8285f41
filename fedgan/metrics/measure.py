"""What a measure is: a chapter of an evaluation, and all that it may look at."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from fedgan.metrics.base import Encoded, Encoder

T = TypeVar("T")
Tick = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def ignore(what: str, done: int, total: int) -> None:
    """A tick that nobody hears."""


class Labelled(NamedTuple):
    """Images uint8 [N, C, H, W] and their labels, int64 [N] or, multi-label, float [N, K]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Trigger:
    """What the attack does to images, as far as measures need it.

    Attributes:
        name: of the attack.
        stamp: every image poisoned, as all attackers together would; the same for the same images.
        counterfeits: the same kind of attack with other random choices (another pattern, another
            warp), which nobody has used: what a trigger is told from. Few or none.
        pattern: uint8 [C, h, w], the local pattern to look for; None where it covers the image.
        place: (top, left) of the pattern in pixels; None where it differs from image to image.
        parts: what each attacker stamps, by name, where they share the work; else empty.
        only_label: the class that it takes over, or None.
    """

    name: str
    stamp: Callable[[Labelled], Labelled]
    counterfeits: tuple[Callable[[Labelled], Labelled], ...] = ()
    pattern: Tensor | None = None
    place: tuple[int, int] | None = None
    parts: dict[str, Callable[[Labelled], Labelled]] = field(default_factory=dict)
    only_label: int | None = None


@dataclass(frozen=True)
class Scene:
    """Everything real that measures hold generated images against.

    Every rank holds the same scene and calls every measure; what costs time is shared out by
    `share`.

    Attributes:
        train, val, test: the splits; the images may rest on the CPU whatever the device.
        classes: their names.
        multi_label: whether labels are [N, K].
        seed: the experiment's.
        samples: how many images are generated, at most half of the training images.
        batch_size: images that are generated and encoded at a time.
        device: where generators and encoders are.
        encoders: prepared, on the device.
        trigger: the attack's, or None.
        share: does a list of jobs, dealt out to the ranks in turn (job i to rank i modulo their
            number), and gives all results, in order, on every rank. The jobs must not call it.
        progress: told the words for what is done now, how much of it is, and how much there is.
        history: rows of clients.csv, read on rank 0 only; None where there is no run.
        halves: features and logits of two disjoint halves of `samples` training images each (half A
            first, see `real.Halves`), on the CPU of every rank.
        encode: features and logits of any images, on the CPU of every rank; work shared out.
        encode_real: the same of real images, kept on the disk for the next run.
        known: what measures have made that depends on the real images alone, by a key of their own;
            one dictionary for all scenes of a run, the same on every rank.
    """

    train: Labelled
    val: Labelled
    test: Labelled
    classes: tuple[str, ...]
    multi_label: bool
    seed: int
    samples: int
    batch_size: int
    device: torch.device
    encoders: tuple[Encoder, ...]
    trigger: Trigger | None
    share: Callable[[Sequence[Callable[[], T]]], list[T]]
    progress: Tick
    history: Callable[[], list[dict[str, Any]]] | None
    halves: Callable[[Encoder], Encoded]
    encode: Callable[[Encoder, Tensor], Encoded]
    encode_real: Callable[[Encoder, Tensor], Encoded]
    known: dict[str, Any] = field(default_factory=dict)


class Generated(ABC):
    """The images that are measured: a generator's, or somebody else's.

    Attributes:
        images: `scene.samples` of them, uint8 [n, C, H, W] on the CPU, the same on every rank; a
            generator's have the training images' mix of labels.
        labels: theirs, on the CPU; None for somebody else's images without any.
    """

    images: Tensor
    labels: Tensor | None

    @abstractmethod
    def seen(self, encoder: Encoder) -> Encoded:
        """Features and logits of `images`, on the CPU of every rank."""

    @abstractmethod
    def draw(self, labels: Tensor, purpose: str) -> Tensor:
        """Images uint8 [n, C, H, W] on the CPU for these labels, others than `images` where that
        can be; the same for the same purpose. Every rank gets all.

        Raises `UserError` where somebody else's images have too few of a class, or no labels.
        """


@dataclass
class Findings:
    """What a measure has found.

    Attributes:
        figures: single numbers by name, for tables, curves and loggers.
        details: whatever else JSON can hold: tables, curves, settings; `notes`, a list of sentences
            that a reader of the figures should know.
        pictures: uint8 [C, H, W] by file name without its ending.
    """

    figures: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)


class Measure(ABC):
    """One chapter of an evaluation. The constructor takes the config's `init_args`.

    A public class in this room is a measure that a config can name, in `evaluate.measures` (at the
    end, and in `evaluate.rounds`) and `evaluate.watch` (on the way).
    """

    name: ClassVar[str]
    needs_generated: ClassVar[bool] = True
    """Whether it looks at generated images; if not, `measure` is given None."""

    def prepare(self, scene: Scene) -> None:  # noqa: B027 (most need nothing)
        """Before anything is trained: whatever can be done without generated images, so that what
        is missing is said at once. Every rank takes part; raises `UserError`."""

    @abstractmethod
    def measure(self, scene: Scene, generated: Generated) -> Findings:
        """The findings, on every rank the same. What takes longer than a second goes through
        `scene.share`, and what takes longer than ten tells `scene.progress`."""
