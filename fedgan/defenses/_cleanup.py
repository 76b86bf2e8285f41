"""What is done about what excluded clients have put into the global model."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fedgan.updates import UpdateMatrix

Way = Literal["rollback", "remove", "none"]


class Cleanup:
    """Remembers as much as it takes to undo the doings of a client that is excluded later.

    Args:
        way: `rollback` goes back to the global model before its first alarm that counts; `remove`
            takes off what its updates since then were weighed by; `none` trains on.
        memory: rounds whose models are kept; of older ones, the oldest that is kept is taken.
    """

    def __init__(self, way: Way, memory: int) -> None:
        self.way = way
        self.memory = memory
        self.models: dict[int, Tensor] = {}
        self.put_in: dict[int, Tensor] = {}

    def begin(self, round: int, parameters: Tensor) -> None:
        """A round begins from these global parameters [P]."""
        if self.way == "rollback":
            self.models[round] = parameters  # the server makes new ones
            for old in [one for one in self.models if one <= round - self.memory]:
                del self.models[old]

    def correction(self, newly: dict[int, int], parameters: Tensor) -> Tensor | None:
        """What is to be added to the global parameters [P], for clients that are excluded from now
        on, and the rounds since when they are suspected."""
        if not newly or self.way == "none":
            return None
        if self.way == "rollback":
            first = min(newly.values())
            # Of a round that an earlier rollback has undone, there is no model any more.
            since = max((kept for kept in self.models if kept <= first), default=min(self.models))
            back = self.models[since].to(parameters) - parameters
            self.models = {round: model for round, model in self.models.items() if round <= since}
            return back
        theirs = [self.put_in.pop(client) for client in newly if client in self.put_in]
        return -torch.stack(theirs).sum(0) if theirs else None

    def end(self, updates: UpdateMatrix, weights: Tensor, suspects: set[int]) -> None:
        """The updates [n, P] of a round were joined under these weights; of the clients, some are
        suspected and not yet excluded."""
        if self.way != "remove":
            return
        self.put_in = {client: one for client, one in self.put_in.items() if client in suspects}
        for i, client in enumerate(updates.clients):
            if client in suspects:
                alone = torch.zeros_like(weights)
                alone[i] = weights[i]
                part, before = updates.weighted_mean(alone), self.put_in.get(client)
                self.put_in[client] = part if before is None else before.to(part) + part

    def state_dict(self) -> dict[str, Any]:
        return {
            "models": {round: one.cpu() for round, one in self.models.items()},
            "put_in": {client: one.cpu() for client, one in self.put_in.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.models = dict(state["models"])
        self.put_in = dict(state["put_in"])
