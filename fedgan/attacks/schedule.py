"""Who attacks, and when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Malicious clients, and the rounds (from 1, both ends included) in which they poison.

    >>> Schedule(frozenset({0}), first=3).active(0, 2)
    False
    """

    clients: frozenset[int]
    first: int = 1
    last: int | None = None

    def active(self, client: int, round: int) -> bool:
        """Whether `client` poisons in `round`."""
        in_time = self.first <= round and (self.last is None or round <= self.last)
        return client in self.clients and in_time

    def attackers(self, clients: Iterable[int], round: int) -> frozenset[int]:
        """Those of `clients` who poison in `round`."""
        return frozenset(client for client in clients if self.active(client, round))
