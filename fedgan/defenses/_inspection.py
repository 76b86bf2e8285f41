"""What the server sees of clients' networks when it runs them itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedgan.defenses.base import Sampler, ServerMeans
from fedgan.evidence import Groups, Look, describe, description_size, of_unit_strength, split
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix

CHUNK = 80
"""Samples that are drawn at a time."""


@dataclass(frozen=True)
class Inspection:
    """Of the n clients of a round.

    Attributes:
        looks: at what their generators draw; and, where they share discriminators, at what these
            ask of the images that the global generator draws. On the CPU.
        norms: how far each has moved its generator, and its discriminator where that is shared:
            Euclidean, float64 [n, networks].
    """

    looks: list[Look]
    norms: Tensor

    def finite(self) -> Tensor:
        """Whether all that is seen of a client is finite, [n]."""
        parts = [part.flatten(1).isfinite().all(1) for look in self.looks for part in look]
        return torch.stack(parts).all(0)


def inspect(
    updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans, samples: int
) -> Inspection:
    """Runs every client's networks on `samples` latents and labels of this round. Each rank runs
    those of its own clients."""
    sampler, critic, device = server.sampler, server.critic, server.parameters.device
    assert sampler is not None
    rng = server.rng("audit", _unforeseen(reports))
    latents = torch.randn((samples, sampler.latent_dim), generator=rng)
    labels, groups = _labels(sampler, samples, rng)
    drawn = list(zip(latents.to(device).split(CHUNK), labels.to(device).split(CHUNK), strict=True))
    asked = []
    if critic is not None:
        asked = [(sampler(server.parameters, *batch), batch[1]) for batch in drawn]

    def statistic(row: Tensor) -> Tensor:
        model = server.parameters + row
        found = [describe(torch.cat([sampler(model, *batch) for batch in drawn]), groups)]
        if critic is not None:
            wishes = torch.cat([critic(model, *batch) for batch in asked])
            found.append(describe(of_unit_strength(wishes), groups))
        return torch.cat(found)

    size, networks = description_size(len(groups), sampler.image), 1 if critic is None else 2
    described = updates.each(statistic, networks * size).cpu()
    looks = [split(part, len(groups), sampler.image) for part in described.split(size, 1)]
    ends = [0, sampler.size, updates.size][: networks + 1]
    norms = torch.stack([updates.part(*pair).norms() for pair in pairwise(ends)], 1)
    return Inspection(looks, norms)


def _unforeseen(reports: Sequence[Report]) -> str:
    """What no client knows before it has handed in its networks, though it may know the seed: what
    all the others report in this round."""
    losses = [(one.d_loss, one.g_loss, one.d_loss_last, one.g_loss_last) for one in reports]
    return torch.tensor(losses, dtype=torch.float64).numpy().tobytes().hex()


def _labels(sampler: Sampler, samples: int, rng: torch.Generator) -> tuple[Tensor, Groups]:
    """Labels that are drawn for, and which of the samples are looked at together. Where an image
    may have several, those of one class, those of two, and those of none, a class of its own: what
    a network does with none or two is no sum of what it does with one."""
    classes = sampler.classes
    drawn_for = torch.arange(samples) % (classes + sampler.multi_label)
    if not sampler.multi_label:
        return drawn_for, Groups(drawn_for, classes)
    has = one_hot(drawn_for, classes + 1)
    second = torch.randint(classes, (samples,), generator=rng)
    twice = (torch.arange(samples) // (classes + 1) % 2 == 1) & (drawn_for < classes)
    has = (has | one_hot(second, classes + 1) * twice[:, None]).float()
    return has[:, :classes].contiguous(), Groups(has, classes + 1)
