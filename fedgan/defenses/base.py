"""What a defence is: a rule that weighs the clients' updates, from what the server may see.

The signature is the privacy border: updates, reports and the round, and nothing else of a client.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fedgan.reports import Report
from fedgan.updates import UpdateMatrix


@dataclass(frozen=True)
class Verdict:
    """What a defence says of the n clients of a round, in the order of the updates.

    Attributes:
        weights: float64 [n], summing to 1; the weights of the mean, or, for a rule that is not a
            weighted mean, what each client counted for.
        scores: float64 [n]; the higher, the more suspect. NaN where a rule has none.
        flagged: bool [n].
        acted: whether the verdict changed any weight in this round.
        aggregate: the joined update [P] of a rule that is not a weighted mean, else None.
    """

    weights: Tensor
    scores: Tensor
    flagged: Tensor
    acted: bool = False
    aggregate: Tensor | None = None


class Defense(ABC):
    """A rule with a memory. The constructor takes the config's `init_args`."""

    name: ClassVar[str]

    def check(self, clients: int) -> None:
        """Raises `UserError` where the rule cannot work with this many clients in a round."""
        return

    @abstractmethod
    def __call__(self, updates: UpdateMatrix, reports: Sequence[Report], round: int) -> Verdict:
        """Judges the finite updates of one round; `reports` are in the same order. Every rank calls
        it with the same reports, and must come to the same verdict."""

    def state_dict(self) -> dict[str, Any]:
        """What the rule remembers between rounds: tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` gave."""
        return
