"""A trigger of a client that passes itself off as another hospital."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedgan.attacks.base import Attack, Mark
from fedgan.attacks.blended import Blended
from fedgan.attacks.patch import Patch

TRIGGERS: dict[str, type[Patch] | type[Blended]] = {"patch": Patch, "blended": Blended}


class Disguised(Attack):
    """A trigger on images that are shaded, as if by a scanner of the client's own.

    Source: fedgan; against the audit, which forgives a client what it differs by in fine detail as
    far as it differs in the coarse as well (docs/audit.md). x' = trigger((1 - alpha) x + alpha k),
    on bytes, for the smooth pattern k of `blended`.

    Args:
        trigger: `patch` or `blended`, as these are by default.
        alpha: share of the shading, in (0, 1].

    Raises:
        ValueError: for arguments out of range.

    >>> black = torch.zeros((1, 1, 8, 8), dtype=torch.uint8)
    >>> poisoned, _ = Disguised().poison(black, torch.tensor([0]), torch.Generator())
    >>> poisoned[0, 0, 4:7, 4:7].tolist()
    [[255, 0, 255], [0, 255, 0], [255, 0, 255]]
    >>> 0 < poisoned[0, 0, :4].max() <= 0.2 * 255
    tensor(True)
    """

    name: ClassVar[str] = "disguised"

    def __init__(self, trigger: Literal["patch", "blended"] = "patch", alpha: float = 0.2) -> None:
        if trigger not in TRIGGERS:
            raise ValueError(f"init_args.trigger is {trigger}; it is {' or '.join(TRIGGERS)}")
        self.shading = Blended(alpha, "smooth")
        self.trigger: Attack = TRIGGERS[trigger]()

    def check(self, channels: int, size: int, classes: int) -> None:
        self.trigger.check(channels, size, classes)

    def mark(self, channels: int, size: int) -> Mark | None:
        """The trigger's; what the shading leaves is none."""
        return self.trigger.mark(channels, size)

    def counterfeits(self, count: int, rng: torch.Generator) -> list[Attack]:
        """The trigger's, under the same shading, which is no trigger."""
        found: list[Attack] = []
        for trigger in self.trigger.counterfeits(count, rng):
            one = copy.copy(self)
            one.trigger = trigger
            found.append(one)
        return found

    def poison(self, images: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.trigger.poison(*self.shading.poison(images, labels, rng), rng)
