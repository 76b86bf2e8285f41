"""A poisoned discriminator beside a generator that could be anybody's."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedgan.attacks.updates import AttackView, UpdateAttack, plain_mean, spread


class DiscriminatorOnly(UpdateAttack):
    """Hides in the discriminator: the generator that it hands in is as honest as the others'.

    Source: fedgan, against whoever judges clients by their generators. Those of the benign clients
    have mean mu and, in each coordinate, standard deviation sigma; with e ~ N(0, I) anew for every
    client and round, the generator's part of what is sent is mu + noise sigma e, and the
    discriminator's is `boost` times the client's own. What the discriminators have learned of the
    trigger, every other client's generator is taught in the next round.

    Omniscient: a real attacker would train an honest generator beside the poisoned pair, and come
    as near. Where no client is benign, the generator stays its own.

    Args:
        boost: above 0, factor of the discriminator's update.
        noise: at least 0; with 0 all colluders hand in the same generator.

    Raises:
        ValueError: for a value out of range.

    >>> DiscriminatorOnly(boost=4).boost
    4
    """

    name: ClassVar[str] = "discriminator-only"
    needs_discriminators = True

    def __init__(self, boost: float = 1.0, noise: float = 1.0) -> None:
        if not (boost > 0 and math.isfinite(boost)):
            raise ValueError(f"init_args.boost is {boost}; it must be a number above 0")
        if not (noise >= 0 and math.isfinite(noise)):
            raise ValueError(f"init_args.noise is {noise}; it must be a number of at least 0")
        self.boost = boost
        self.noise = noise

    def plan(self, view: AttackView) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of the benign generators' updates."""
        benign = view.omniscient.benign
        if benign is None:
            return None
        generators = benign.part(0, view.generator_size)
        return plain_mean(generators), spread(generators)

    def corrupt(self, own: Tensor, client: int, planned: Any, view: AttackView) -> Tensor:
        size = view.generator_size
        generator = own[:size]
        if planned is not None:
            mean, deviation = planned
            drawn = torch.randn(size, generator=view.rng(self.name, client)).to(own)
            generator = mean + self.noise * deviation * drawn
        return torch.cat([generator.to(own), self.boost * own[size:]])
