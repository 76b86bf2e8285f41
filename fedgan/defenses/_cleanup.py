"""What is done about what excluded clients have put into the global model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fedgan.updates import UpdateMatrix

Way = Literal["remove", "rollback", "none"]
Choice = Literal["auto", "remove", "rollback", "none"]
"""`auto` is the first that can be done."""

LEAD = 2
"""Rounds by which harm comes before the first alarm: evidence has to add up, in several rounds."""


class Cleanup:
    """Remembers as much as it takes to undo the doings of a client that is excluded later.

    Args:
        way: `remove` takes off what the client's updates have put in since its first alarm that
            counts; `rollback` goes back to the global model before the first round in which it
            counted for anything, of those since `LEAD` rounds before that alarm, and drops the
            updates of the round at hand: they were trained from what is undone, and against
            discriminators that had learned the trigger; `none` trains on.
        memory: rounds that can be undone, the one at hand besides: what was put in before stays.
    """

    def __init__(self, way: Way, memory: int) -> None:
        self.way = way
        self.memory = memory
        self.models: dict[int, Tensor] = {}
        """What each round's aggregate was added to."""
        self.counted: dict[int, frozenset[int]] = {}
        """The clients with a weight in each round."""
        self.put_in: dict[int, Tensor] = {}

    def begin(self, round: int, parameters: Tensor) -> None:
        """A round begins from these global parameters [P]."""
        if self.way == "rollback":
            self.models[round] = parameters  # the server makes new ones
            self._keep(lambda kept: kept >= round - self.memory)

    def correction(
        self, out: set[int], newly: Mapping[int, int], round: int, parameters: Tensor
    ) -> tuple[Tensor | None, int | None]:
        """What is to be added in this round to the global parameters [P], for the sake of clients
        that have no weight in it, and of those of them that are excluded anew, with the rounds
        since when they are suspected; None where nothing is there to be undone. And the round
        before which that goes back: it then takes the place of this round's updates.

        To go back undoes what others did as well, and so is done once an exclusion; what a client
        put in is taken off whenever it has no weight, also of one that was spared in between
        because more were accused than can be excluded.
        """
        if self.way == "rollback":
            theirs = [
                kept
                for client, since in newly.items()
                for kept, clients in self.counted.items()
                if client in clients and kept >= since - LEAD
            ]
            if not theirs:
                return None, None
            first = min(theirs)
            model = self.models[first]
            self._keep(lambda kept: kept < first)
            self.models[round] = model
            return model.to(parameters) - parameters, first
        parts = [self.put_in.pop(client) for client in sorted(out & self.put_in.keys())]
        if not parts:
            return None, None
        return -torch.stack([part.to(parameters) for part in parts]).sum(0), None

    def end(self, round: int, updates: UpdateMatrix, weights: Tensor, suspects: set[int]) -> None:
        """The updates [n, P] of a round were joined under these weights; of all clients, some are
        suspected and not yet excluded."""
        if self.way == "rollback":
            pairs = zip(updates.clients, weights.tolist(), strict=True)
            self.counted[round] = frozenset(client for client, weight in pairs if weight > 0)
        if self.way != "remove":
            return
        self.put_in = {client: one for client, one in self.put_in.items() if client in suspects}
        for i, client in enumerate(updates.clients):
            if client in suspects:
                alone = torch.zeros_like(weights)
                alone[i] = weights[i]
                part, before = updates.weighted_mean(alone), self.put_in.get(client)
                self.put_in[client] = part if before is None else before.to(part) + part

    def _keep(self, wanted: Callable[[int], bool]) -> None:
        self.models = {kept: model for kept, model in self.models.items() if wanted(kept)}
        self.counted = {kept: clients for kept, clients in self.counted.items() if wanted(kept)}

    def state_dict(self) -> dict[str, Any]:
        return {
            "models": {round: one.cpu() for round, one in self.models.items()},
            "counted": {round: sorted(clients) for round, clients in self.counted.items()},
            "put_in": {client: one.cpu() for client, one in self.put_in.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.models = dict(state["models"])
        self.counted = {round: frozenset(clients) for round, clients in state["counted"].items()}
        self.put_in = dict(state["put_in"])
