"""What a defence is: a rule that weighs or joins the updates, from what the server may see.

The signatures are the privacy border: updates, reports and the server's own means, and nothing else
of a client. A defence is a chain of stages: pre-aggregations change the updates, one rule joins
them, and server steps change what it has joined.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fedgan.errors import UserError
from fedgan.reports import Report
from fedgan.seeding import torch_generator
from fedgan.updates import UpdateMatrix

log = logging.getLogger(__name__)


class Sampler(Protocol):
    """Runs a vector of shared parameters [P] as a generator, on latents and labels of the server's
    own; no data of a client.

    Attributes:
        latent_dim: Z.
        classes: K.
        multi_label: whether labels are float [m, K] instead of int64 [m].
        image: C, H, W.
        size: how many of the P are the generator's; they are the first.
    """

    latent_dim: int
    classes: int
    multi_label: bool
    image: tuple[int, int, int]
    size: int

    def __call__(self, parameters: Tensor, latents: Tensor, labels: Tensor) -> Tensor:
        """Latents [m, Z] and labels to images [m, C, H, W] in [-1, 1], without gradients."""


class Critic(Protocol):
    """Runs a vector of shared parameters [P] as a discriminator, on images of the server's own."""

    def __call__(self, parameters: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """By what change of its pixels each of the images [m, C, H, W] would pass more for a real
        one: the gradient of its logit, likewise [m, C, H, W]."""


@dataclass(frozen=True)
class ServerMeans:
    """What the server has of its own; the same on every rank.

    Attributes:
        round: from 1.
        parameters: the global model [P] that the clients of this round started from.
        seed: the experiment's.
        sampler: runs a model as a generator; None outside a federation of GANs.
        critic: runs a model as a discriminator; None where discriminators are not shared.
    """

    round: int
    parameters: Tensor
    seed: int = 0
    sampler: Sampler | None = None
    critic: Critic | None = None

    def rng(self, *purpose: str | int) -> torch.Generator:
        """Randomness of this round for one purpose, on the CPU: the same bytes on any device."""
        return torch_generator(self.seed, "defense", self.round, *purpose)


@dataclass(frozen=True)
class Exhibit:
    """What a defence shows of a client that it accuses.

    Attributes:
        client: its number.
        words: what is there, in a sentence.
        picture: of it, uint8 [C, H, W] on the CPU.
    """

    client: int
    words: str
    picture: Tensor


@dataclass(frozen=True)
class Verdict:
    """What a rule says of the n clients of a round, in the order of the updates.

    Attributes:
        weights: float64 [n], summing to 1; the weights of the mean, or, for a rule that is not a
            weighted mean, what each client counted for. All 0 where nobody counted.
        scores: float64 [n]; the higher, the more suspect. NaN where a rule has none.
        flagged: bool [n].
        acted: whether the verdict changed any weight in this round.
        aggregate: the joined update [P] of a rule that is not a weighted mean, else None.
        correction: what is added to the global model [P], to undo what clients put there before
            they were found out; or None.
        back_to: the round before which the correction takes the global model back, if it undoes
            whole rounds. It is then all that is added, for the updates were trained from what it
            undoes; the weights are those that they were to be joined under.
        exhibits: what speaks against the clients that are accused.
    """

    weights: Tensor
    scores: Tensor
    flagged: Tensor
    acted: bool = False
    aggregate: Tensor | None = None
    correction: Tensor | None = None
    back_to: int | None = None
    exhibits: tuple[Exhibit, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        weights: Tensor,
        scores: Tensor | None = None,
        flagged: Tensor | None = None,
        *,
        acted: bool = True,
        aggregate: Tensor | None = None,
    ) -> Verdict:
        """A verdict with no scores and nobody flagged unless given; on the CPU, in float64."""
        n = len(weights)
        return cls(
            weights.double().cpu(),
            torch.full((n,), torch.nan, dtype=torch.float64)
            if scores is None
            else scores.double().cpu(),
            torch.zeros(n, dtype=torch.bool) if flagged is None else flagged.cpu(),
            acted,
            aggregate,
        )

    def joined(self, updates: UpdateMatrix) -> Tensor:
        """The aggregate update [P]: the rule's own, or the mean under the weights; corrected, or
        the correction in its place."""
        if self.back_to is not None and self.correction is not None:
            return self.correction
        own = self.aggregate
        if own is None:
            own = updates.weighted_mean(self.weights)
        return own if self.correction is None else own + self.correction


class Stage(ABC):
    """A part of a defence, with or without a memory. The constructor takes the config's
    `init_args`."""

    name: ClassVar[str]
    reads_losses: ClassVar[bool] = False
    """Whether it needs more of a report than the client's number."""
    runs_generators: ClassVar[bool] = False
    """Whether it needs the server's `sampler`."""

    def check(self, n: int) -> None:
        """Raises `UserError` where the stage cannot work with n clients in a round."""
        return

    def check_clients(self, clients: int) -> None:
        """Raises `UserError` where the stage relies on a client that a federation of so many has
        not; they are 0 to `clients` - 1."""
        return

    def penalties(self) -> dict[str, float]:
        """The gradient penalties that clients are to train with, by the name of the loss's argument
        for its weight (`gamma`, `weight`); none asked for is the loss as it is."""
        return {}

    def restart(self) -> None:
        """The global model was put back: what the stage keeps of the way that it went, such as a
        momentum, is to be forgotten; not so what it knows of clients."""
        return

    def fewest(self) -> int:
        """The fewest usable updates in a round that the stage can do anything with."""
        return 1

    def state_dict(self) -> dict[str, Any]:
        """What the stage remembers between rounds: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        return


class Defense(Stage):
    """A rule: judges the updates of a round, and says how to join them."""

    @property
    def is_fair_mean(self) -> bool:
        """Whether it is the mean under the weights that it starts from, and nothing else."""
        return False

    @abstractmethod
    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        """Judges the usable updates of one round; `reports` are in the same order. Every rank calls
        it with the same reports, and must come to the same verdict."""


class Detector(Stage):
    """Judges the clients of a round before a rule joins what is left of them."""

    def work_before(self, rule: Defense) -> None:
        """Adapts to the rule that it works in front of; `UserError` where it cannot."""
        return

    @abstractmethod
    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        """As `Defense`; `weights` are what is left of the fair ones, 0 for a client whose update
        the rule is not to see."""


class PreAggregation(Stage):
    """Changes the updates before a rule sees them, each into a linear combination of all.

    Attributes:
        changes_updates: whether it does; one that does not changes the clients' training alone.
    """

    changes_updates: ClassVar[bool] = True

    @abstractmethod
    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> UpdateMatrix:
        """As many rows as `updates` has, in the same order."""


class ServerStep(Stage):
    """Changes the aggregate update before the server adds it to the global model."""

    @abstractmethod
    def __call__(self, aggregate: Tensor, server: ServerMeans) -> Tensor:
        """What is added instead of `aggregate` [P], which stays as it is."""


class Tolerant(Stage):
    """A stage that stands f malicious clients among n, where n >= a f + b.

    Args:
        f: malicious clients to stand among those whose updates are usable, at least 0.
    """

    needs: ClassVar[tuple[int, int]]
    """a and b."""

    def __init__(self, f: int = 1) -> None:
        if f < 0:
            raise ValueError(f"init_args.f is {f}; it must be at least 0")
        self.f = f
        self._told = f

    def check(self, n: int) -> None:
        a, b = self.needs
        if n < a * self.f + b:
            times = "" if a == 1 else a
            raise UserError(
                f"defense: {self.name} needs n >= {times}f+{b}: n is {n}, f is {self.f}"
            )

    def fewest(self) -> int:
        return self.needs[1]

    def f_of(self, n: int) -> int:
        """f of a round with n usable updates: no more than n bears, where some are not there.

        Whoever is in quarantine does not count among the f: it may be a benign client.
        """
        a, b = self.needs
        f = max(0, min(self.f, (n - b) // a))
        if f < self._told:
            log.warning("%s: f is %d where %d updates are usable", self.name, f, n)
        self._told = min(f, self._told)
        return f
