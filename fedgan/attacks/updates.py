"""What an attack on updates is: malicious clients train as the others do, and send something else.

The row that a client sends is one vector of all shared networks, and an attack changes it as one;
its own networks and optimisers stay as its training has left them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedgan.seeding import torch_generator
from fedgan.shards import rank
from fedgan.updates import UpdateMatrix


@dataclass(frozen=True)
class Omniscience:
    """What only the simulation knows, and no client could: an attack that reads this is stronger
    than any real one, and stands for the worst case.

    Attributes:
        usable: the updates of this round as they were trained, of all clients that have one which
            the server could use. Failed, dropped out and non-finite clients are not in it.
        attackers: those of them who attack.
        losses: the last known losses [4] of every benign client that has ever reported some, in
            earlier rounds; a client's number is its key.
    """

    usable: UpdateMatrix
    attackers: tuple[int, ...]
    losses: Mapping[int, Tensor]

    @cached_property
    def benign(self) -> UpdateMatrix | None:
        """The benign clients' updates, a copy; None where there is not one. Its questions are
        collective: every rank must ask them."""
        return self._of(client for client in self.usable.clients if client not in self.attackers)

    @cached_property
    def colluders(self) -> UpdateMatrix | None:
        """The attackers' own updates before they are changed, likewise."""
        return self._of(self.attackers)

    def _of(self, chosen: Iterable[int]) -> UpdateMatrix | None:
        among, usable = set(chosen), self.usable
        places = [i for i, client in enumerate(usable.clients) if client in among]
        if not places:
            return None
        here = [i for i, owner in enumerate(usable.owners) if owner == rank()]
        weights = usable.weights[places]
        return UpdateMatrix(
            usable.rows[[row for row, i in enumerate(here) if i in places]],
            tuple(usable.clients[i] for i in places),
            tuple(usable.owners[i] for i in places),
            weights / weights.sum(),
        )


@dataclass(frozen=True)
class AttackView:
    """What the attackers of a round have to go by; the same on every rank.

    Attributes:
        round: from 1.
        attackers: numbers of the colluders who have trained a usable update, ascending.
        n: usable clients in all. The simulation's: a client can only guess who else was drawn, and
            whose update failed.
        weights: FedAvg's weights of these n, by client; they sum to 1. The simulation's likewise.
        parameters: the global model [P] that all have started from.
        last_aggregate: what the server has added to it in the round before, [P]; None in the first
            round. A client can tell it from two global models, where it was drawn in both rounds;
            the simulation tells it to all.
        omniscient: THE SIMULATION'S: what no client could see.
        generator_size: how many of the P are the generator's, which come first.
        seed: the experiment's.
        link: the place in attack.update, from 0, of the attack that looks.
    """

    round: int
    attackers: tuple[int, ...]
    n: int
    weights: Mapping[int, float]
    parameters: Tensor
    last_aggregate: Tensor | None
    omniscient: Omniscience
    generator_size: int
    seed: int = 0
    link: int = 0

    @property
    def weight(self) -> float:
        """The attackers' total FedAvg weight, in (0, 1]."""
        return sum(self.weights[client] for client in self.attackers)

    def rng(self, *purpose: str | int) -> torch.Generator:
        """Randomness of this round for one purpose, on the CPU: the same bytes on any device. The
        same attack twice in a row draws twice."""
        link = [f"link {self.link}"] if self.link else []
        return torch_generator(self.seed, "attack", self.round, *link, *purpose)


class UpdateAttack(ABC):
    """What malicious clients send instead of their updates. The constructor takes the config's
    `init_args`.

    >>> SignFlip().corrupt(update, client, planned, view)  # doctest: +SKIP
    """

    name: ClassVar[str]
    replaces: bool = False
    """Whether what it sends has nothing of the update it is given, so that an attack before it
    would be lost. Such a one comes first."""

    needs_discriminators: ClassVar[bool] = False
    """Whether it acts through poisoned discriminators, so that these must be shared, and images
    poisoned."""

    def doubt(self, n: int, f: int, before: Sequence[UpdateAttack] = ()) -> str | None:
        """Why f attackers among n clients would do little or nothing with it after the attacks
        `before` it, for a warning before the run; None where there is no reason."""
        return None

    def plan(self, view: AttackView) -> Any:
        """What the colluders agree on, once a round and before any of them sends. Called on every
        rank, so collective questions are allowed; the answer must be the same on each."""
        return None

    @abstractmethod
    def corrupt(self, own: Tensor, client: int, planned: Any, view: AttackView) -> Tensor:
        """What `client` sends instead of its `own` update [P], which stays as it is. Called on its
        rank alone, so nothing collective is allowed."""


class OmniscientAttack(UpdateAttack):
    """An attack whose colluders all send the same vector, made of the benign clients' updates.

    Where there is no benign update, they send their own. Equal updates are easily told by a server
    that looks for them; that is the price of sending the strongest vector from everywhere.
    """

    replaces = True

    @abstractmethod
    def forge(self, benign: UpdateMatrix, view: AttackView) -> Tensor:
        """The vector [P] that all colluders send. Collective, as `plan` is."""

    def plan(self, view: AttackView) -> Tensor | None:
        benign = view.omniscient.benign
        return None if benign is None else self.forge(benign, view)

    def corrupt(self, own: Tensor, client: int, planned: Any, view: AttackView) -> Tensor:
        return own if planned is None else planned


def plain_mean(updates: UpdateMatrix) -> Tensor:
    """The mean of all rows, each counting alike, [P]."""
    n = len(updates)
    return updates.weighted_mean(torch.full((n,), 1 / n, dtype=torch.float64))


def spread(updates: UpdateMatrix, correction: int = 0) -> Tensor:
    """The standard deviation of each column over the rows, [P]: of the population, or with a
    `correction` of 1 of a sample. 0 where there are too few rows."""
    if len(updates) <= correction:
        return torch.zeros(updates.size, dtype=updates.rows.dtype, device=updates.rows.device)
    return updates.columns(lambda block: block.double().std(0, correction=correction))
