"""What the server sees of clients' networks when it runs them itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fedgan.defenses._spreads import ALONE, AVERAGED
from fedgan.defenses._suspicion import bounds
from fedgan.defenses.base import Sampler, ServerMeans
from fedgan.evidence import (
    Groups,
    Look,
    a_colour,
    describe,
    description_size,
    logarithms,
    of_unit_strength,
    split,
)
from fedgan.precision import full_precision
from fedgan.shards import of_first_rank
from fedgan.updates import UpdateMatrix
from fedgan.vectors import sha256

SHORTEST = 0.02
"""The least step from the mean away from a client, or towards it, in units of the distance between
them: by what is shorter, networks give the same but for rounding."""


@dataclass(frozen=True)
class View:
    """One kind of look at the n clients of a round, on the CPU.

    Attributes:
        told: of each client, in logarithms, with an axis [n] first.
        about: what equipment may have changed: one look, in logarithms; None for the median.
    """

    told: Look
    about: Look | None = None

    def finite(self) -> Tensor:
        """Whether all that is seen of a client is finite, [n]."""
        return torch.stack([part.flatten(1).isfinite().all(1) for part in self.told]).all(0)


@dataclass(frozen=True)
class Inspection:
    """Of the n clients of a round.

    Attributes:
        views: by name: what a generator draws; and, where discriminators are shared, what they ask
            of the images that the global generator draws. Of each client's networks (`ALONE`), and
            of what is different in the clients' mean for its sake (`AVERAGED`), over the step that
            the mean makes for it.
        norms: how far each has moved its generator, and its discriminator where that is shared:
            Euclidean, float64 [n, networks].
        finite: whether its networks give what is finite, and it does not keep the mean from doing
            so, [n].
        groups: what each of the groups of samples is called, but the first, that of all.
    """

    views: dict[str, View]
    norms: Tensor
    finite: Tensor
    groups: tuple[str, ...]


class Stage:
    """What networks are run on in one round: latents, labels, and images of the server's; and the
    colour in which textures are looked at."""

    def __init__(self, updates: UpdateMatrix, server: ServerMeans, samples: int) -> None:
        assert server.sampler is not None
        self._sampler, self._critic = server.sampler, server.critic
        device = server.parameters.device
        rng = server.rng("audit", _unforeseen(updates))
        latents = torch.randn((samples, self._sampler.latent_dim), generator=rng)
        labels, self._groups = _labels(self._sampler, samples, rng)
        self._drawn_for = latents.to(device), labels.to(device)
        self._colour = a_colour(torch.randn(self._sampler.image[0], generator=rng)).to(device)

    @property
    def groups(self) -> tuple[str, ...]:
        """What is looked at together, but all, by numbers of classes."""
        numbers = [str(number) for number in range(self._sampler.classes)]
        return self._groups.named(numbers + ["none"] * self._sampler.multi_label)

    @property
    def networks(self) -> int:
        """How many of a client's are run."""
        return 1 if self._critic is None else 2

    @property
    def size(self) -> int:
        """Length of what `describe` gives."""
        return self.networks * description_size(len(self._groups), self._sampler.image)

    def draw(self, model: Tensor) -> Tensor:
        """What the generator of a model [P] draws, [m, C, H, W]."""
        return self._sampler(model, *self._drawn_for)

    def shown_to_critics(self, model: Tensor) -> Tensor | None:
        """The same, on every rank what the first has drawn; None where there are no critics."""
        return None if self._critic is None else of_first_rank(self.draw(model))

    @full_precision()
    def describe(
        self, model: Tensor, asked_about: Tensor | None, drawn: Tensor | None = None
    ) -> Tensor:
        """A look at what the networks of a model [P] do, its discriminator with these images, as a
        vector; with what its generator has drawn, if that is known."""
        found = [describe(self.draw(model) if drawn is None else drawn, self._groups, self._colour)]
        if self._critic is not None and asked_about is not None:
            wishes = self._critic(model, asked_about, self._drawn_for[1])
            found.append(describe(of_unit_strength(wishes), self._groups, self._colour))
        return torch.cat(found)

    def looks(self, described: Tensor) -> list[Look]:
        """Looks at the networks of n models, in logarithms, from their descriptions [n, size]."""
        parts = described.cpu().split(self.size // self.networks, 1)
        image = self._sampler.image
        return [logarithms(split(part, len(self._groups), image)) for part in parts]


def inspect(updates: UpdateMatrix, server: ServerMeans, samples: int, trust: Tensor) -> Inspection:
    """Runs every client's networks on `samples` latents and labels of this round, and the clients'
    mean with it and without it; with `trust` [n], as much as each was trusted before. Each rank
    runs those of its own clients."""
    stage = Stage(updates, server, samples)
    drawn = stage.shown_to_critics(server.parameters)
    described = updates.each(
        lambda row, _: stage.describe(server.parameters + row, drawn), stage.size
    )
    told = stage.looks(described)
    alone = {name: View(look) for name, look in zip(ALONE, told, strict=False)}
    assert server.sampler is not None
    ends = [0, server.sampler.size, updates.size][: stage.networks + 1]
    norms = torch.stack([updates.part(*pair).norms() for pair in pairwise(ends)], 1)
    finite = _finite(told)
    fair = updates.weights * finite
    if finite.any():
        fair = fair * bounds(norms, norms[finite].quantile(0.5, 0))
    averaged, harmless = _averaged(updates, server.parameters, stage, fair, trust)
    return Inspection(alone | averaged, norms, finite & harmless, stage.groups)


def _averaged(
    updates: UpdateMatrix, parameters: Tensor, stage: Stage, fair: Tensor, trust: Tensor
) -> tuple[dict[str, View], Tensor]:
    """What each client makes of the clients' mean, and whether it leaves the mean's networks as
    finite as they are without it, [n].

    The mean is that under the weights `fair` * `trust`. Of a client with such a weight, it is
    compared with the mean without it; of one without any, with the mean with it under its fair
    weight. The difference of what networks do is divided by the step between the two: it is what
    the client's own networks do less what the mean's do, if networks were linear. Discriminators
    are asked about what the mean's generator draws: it is what they are to judge.
    """
    weights = fair * trust
    shares = weights / weights.sum() if weights.any() else weights
    away = (shares / (1 - shares)).clamp(SHORTEST, 1 / SHORTEST)
    steps = torch.where(shares > 0, -away, (fair / (1 + fair)).clamp(min=SHORTEST))
    mean = updates.weighted_mean(shares).float()
    drawn = stage.shown_to_critics(parameters + mean)

    def other(row: Tensor, i: int) -> Tensor:
        return stage.describe(parameters + mean + float(steps[i]) * (row - mean), drawn)

    others = stage.looks(updates.each(other, stage.size))
    whole = stage.looks(of_first_rank(stage.describe(parameters + mean, drawn, drawn))[None])
    views = {}
    for name, told, about in zip(AVERAGED, others, whole, strict=False):
        apart = [
            (one - middle) / steps.float().view(-1, *[1] * (one.dim() - 1))
            for one, middle in zip(told, about, strict=True)
        ]
        # What cannot be compared tells nothing.
        around = Look(*(_or_nothing(one)[0] for one in about))
        views[name] = View(Look(*map(_or_nothing, apart)), around)
    return views, _harmless(_finite(others), bool(_finite(whole)), shares > 0)


def _finite(looks: Sequence[Look]) -> Tensor:
    """Of looks at n models' networks, whether all that is seen of a model is finite, [n]."""
    return torch.stack([View(look).finite() for look in looks]).all(0)


def _harmless(others: Tensor, whole: bool, inside: Tensor) -> Tensor:
    """Who does not keep the mean from being finite, [n]: by whether the `whole` mean is; and the
    mean without each of those `inside`, and with each of the others. Nobody's word counts if the
    mean is not finite and it is not one client alone that is to blame."""
    if whole:
        return inside | others
    blamed = inside & others
    return ~blamed if blamed.sum() == 1 else torch.zeros_like(inside)


def _or_nothing(told: Tensor) -> Tensor:
    """Of each row of [n, ...], 0 unless all of it is finite."""
    fine = told.flatten(1).isfinite().all(1)
    return torch.where(fine.view(-1, *[1] * (told.dim() - 1)), told, 0.0)


def _unforeseen(updates: UpdateMatrix) -> str:
    """What no client knows before all have handed in their networks, though it may know the seed
    and be the last: a hash of every update. Whoever trains against what it has told changes it."""

    def hashed(row: Tensor, _: int) -> Tensor:
        return torch.tensor(list(sha256(row)), dtype=torch.float32)

    return bytes(updates.each(hashed, 32).byte().flatten().tolist()).hex()


def _labels(sampler: Sampler, samples: int, rng: torch.Generator) -> tuple[Tensor, Groups]:
    """Labels that are drawn for, and which of the samples are looked at together. Where an image
    may have several, those of one class, those of two, and those of none, a class of its own: what
    a network does with none or two is no sum of what it does with one. Of more classes than
    samples, others in each round."""
    classes = sampler.classes
    kinds = classes + sampler.multi_label
    drawn_for = torch.arange(samples) % kinds
    if kinds > samples:
        drawn_for = torch.randperm(kinds, generator=rng)[:samples].sort().values
    if not sampler.multi_label:
        return drawn_for, Groups(drawn_for, classes)
    has = one_hot(drawn_for, classes + 1)
    second = torch.randint(classes, (samples,), generator=rng)
    twice = (torch.arange(samples) // (classes + 1) % 2 == 1) & (drawn_for < classes)
    has = (has | one_hot(second, classes + 1) * twice[:, None]).float()
    return has[:, :classes].contiguous(), Groups(has, classes + 1)
