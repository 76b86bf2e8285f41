"""Where an attack's harm lives: what each local discriminator says of the trigger.

The simulation's own look at its clients, for tables and curves. Nothing of it goes into a report or
reaches a defence, which no server could ask for: it would take the trigger, and the discriminator
of a client that may keep it at home.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedgan.attacks.base import Attack, eligible
from fedgan.data.base import Split
from fedgan.images import to_float
from fedgan.seeding import torch_generator

IMAGES = 64
BATCH = 32
"""Images that a discriminator is shown at a time."""


@dataclass(frozen=True)
class Probe:
    """The same real images without and with the trigger: uint8 [n, C, H, W], n >= 2, and their
    labels, of one device."""

    clean: Tensor
    stamped: Tensor
    labels: Tensor

    @classmethod
    def draw(
        cls,
        splits: tuple[Split, ...],
        attack: Attack,
        only_label: int | None,
        seed: int,
        device: torch.device,
    ) -> Probe | None:
        """64 real images drawn by `seed` from the first of `splits` with so many that the attack
        may poison, or from the last with all that it has, poisoned as all attackers together would.

        None where that changes no pixel (no attack, or one on labels): there is no trigger. Labels
        stay the true ones, so that the discriminator is asked the same thing of both.
        """
        for split in splits:
            may = eligible(split.labels, only_label) & attack.affects(split.labels)
            among = may.nonzero()[:, 0].cpu()
            if len(among) >= IMAGES:
                break
        if len(among) < 2:
            return None
        # On the CPU, so that the same images are stamped alike whatever trains on them.
        rng = torch_generator(seed, "critic probe")
        chosen = among[torch.randperm(len(among), generator=rng)[:IMAGES]]
        clean, labels = split.images[chosen].cpu(), split.labels[chosen].cpu()
        stamped, _ = attack.poison(clean, labels, rng)
        if torch.equal(stamped, clean):
            return None
        return cls(clean.to(device), stamped.to(device), labels.to(device))

    def bias(self, critic: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """(mean D(stamped, y) - mean D(clean, y)) / std D(clean, y): float64, 0-d, on the device,
        without waiting for it; NaN where D says the same of all clean images.

        In standard deviations of what D says of real images: at +2 the trigger alone lifts an image
        from the middling to the most convincing few per cent, so that a generator that fools D is
        one that draws it; about 0 is a D that does not mind. `critic` maps images float
        [B, C, H, W] in [-1, 1] and labels to logits [B]. Cost: 2n evaluations without gradients,
        17 ms for the default D at 32 pixels on one core, 64 ms at 64.

        >>> black = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
        >>> clean = black + torch.tensor([0, 10, 20, 30], dtype=torch.uint8).view(4, 1, 1, 1)
        >>> probe = Probe(clean, clean + 100, torch.zeros(4, dtype=torch.int64))
        >>> round(float(probe.bias(lambda images, labels: images.mean((1, 2, 3)))), 3)
        7.746
        """
        says = []
        for images in (self.clean, self.stamped):
            batches = zip(images.split(BATCH), self.labels.split(BATCH), strict=True)
            says.append(torch.cat([critic(to_float(x), y).double() for x, y in batches]))
        clean, stamped = says
        bias: Tensor = (stamped.mean() - clean.mean()) / clean.std()
        return bias


@contextmanager
def as_it_is(network: nn.Module) -> Iterator[None]:
    """A network in eval mode and without gradients inside the block; after it every part is in the
    mode that it was in, and no buffer has moved."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
