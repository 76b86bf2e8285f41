"""How much speaks against each client, and what follows: alarms, standing, trust."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgan.evidence import Look, bands

SPREADS = {
    "fine map": (0.22, 0.2),
    "coarse map": (0.23, 0.23),
    "fine amplitude": (0.22, 0.2),
    "coarse amplitude": (0.25, 0.22),
    "texture": (0.36, 0.34),
    "fine map of a class": (0.25, 0.18),
    "coarse map of a class": (0.23, 0.23),
    "fine amplitude of a class": (0.2, 0.18),
    "coarse amplitude of a class": (0.24, 0.19),
    "texture of a class": (0.38, 0.3),
}
"""By witness, for the largest entry of its evidence and for the root mean square of all entries:
the standard deviation, among honest clients, of the logarithm of a client's strength over an honest
client's; see docs/audit.md for how they were found."""
SPREADS_OF_LOSSES = (0.9, 0.85)
"""The same of the losses that clients report, of the discriminator and of the generator."""
DISCOUNT = 0.8
"""Of what a client differs by in the coarse, for it is then another hospital: how much of that, in
logarithms, its witnesses are forgiven."""
ALARMS_TO_DOUBT, ALARMS_TO_EXCLUDE, MOST_ALARMS = 2, 3, 5
DOUBTED = 1 / 3
"""Factor of the weight of a client between the two."""
QUARTILE = 0.6745
"""Of the standard normal distribution: half of it is within so much of 0."""


@dataclass
class Standing:
    """What the server remembers of a client.

    Attributes:
        maps: accumulated deviations of its mean images that no equipment explains, [groups, C, H,
            W].
        amplitudes, textures: likewise of logarithms, [groups, bands, H, W] and [groups, features].
        losses: likewise of the losses that it reports, [2].
        rounds: how often it was seen.
        alarms: rounds with an alarm less those without, from 0 to `MOST_ALARMS`.
        since: the round of the first alarm of those that count; 0 where there is none.
        score: of the last round in which it was judged.
    """

    maps: Tensor
    amplitudes: Tensor
    textures: Tensor
    losses: Tensor
    rounds: int = 0
    alarms: int = 0
    since: int = 0
    score: float = 0.0

    @property
    def is_excluded(self) -> bool:
        return self.alarms >= ALARMS_TO_EXCLUDE

    @property
    def trust(self) -> float:
        """Factor of its weight."""
        if self.is_excluded:
            return 0.0
        return DOUBTED if self.alarms >= ALARMS_TO_DOUBT else 1.0

    def add(self, seen: Look, losses: Tensor, forgetting: float) -> None:
        """A round's evidence."""
        self.maps = forgetting * self.maps + seen.maps
        self.amplitudes = forgetting * self.amplitudes + seen.amplitudes
        self.textures = forgetting * self.textures + seen.textures
        self.losses = forgetting * self.losses + losses
        self.rounds += 1

    def judge(self, score: float, alarm: bool, round: int) -> None:
        """A round's score, and its alarm, or the absence of one."""
        self.score = score
        if alarm and self.alarms == 0:
            self.since = round
        self.alarms = min(MOST_ALARMS, self.alarms + 1) if alarm else max(0, self.alarms - 1)
        if self.alarms == 0:
            self.since = 0

    def witnesses(self, forgetting: float, usual: Tensor) -> tuple[Tensor, Tensor]:
        """How strong its evidence is by each witness, float64 [w, 2]: `SPREADS` in order, the last
        half where there are several classes; and how far it is from the others in what the bands
        leave of the maps, float64 [groups]. Whoever was seen more often has not the more of either,
        as far as it is chance. Textures are held against what is `usual` for each of them, [groups,
        features]: some differ by far more than others between honest clients."""
        grown = math.sqrt(sum(forgetting ** (2 * k) for k in range(self.rounds)))
        by_band = bands(self.maps)
        coarse = (self.maps - by_band.sum(1)).flatten(1).square().mean(1).sqrt()
        maps = _strengths(by_band.flatten(2))  # [groups, bands, 2]
        amplitudes = _strengths(self.amplitudes.flatten(2))
        middle = usual.quantile(0.5, 1, keepdim=True)
        textures = _strengths(self.textures * middle / (usual + middle).clamp(min=1e-12))[:, None]
        each = torch.cat([maps, amplitudes, textures], 1).double().cpu() / grown
        found = torch.cat([each[0], each[1:].amax(0)]) if len(each) > 1 else each[0]
        return found, coarse.double().cpu() / grown


def _strengths(entries: Tensor) -> Tensor:
    """The largest and the root mean square of entries [..., k]: [..., 2]."""
    return torch.stack([entries.abs().amax(-1), entries.square().mean(-1).sqrt()], -1)


def forgiven(strengths: Tensor, coarse: Tensor, believed: Sequence[int]) -> Tensor:
    """Witnesses' strengths [n, w, 2] less what is due to another hospital.

    An honest client whose patients, labels or number of steps are its own draws other images than
    the rest in everything, most of all in the coarse, where a trigger has little to gain. So its
    strengths are divided by how much it exceeds the median client there (`coarse`, [n, groups]), in
    the class where it does most, to the power of `DISCOUNT`.
    """
    excess = coarse.clamp(min=torch.finfo(torch.float64).tiny).log()
    excess = (excess - excess[list(believed)].quantile(0.5, 0)).amax(1).clamp(min=0)
    return strengths * (-DISCOUNT * excess).exp()[:, None, None]


def scores(strengths: Tensor, believed: Sequence[int] | None = None) -> Tensor:
    """How far each client stands out: of witnesses' strengths [n, w, 2] the highest logarithm of
    the ratio to an honest client's, in standard deviations of honest clients; [n].

    Honest ones are told by the shortest half of the logarithms (Grubel 1988, Ann. Statist. 16,
    619) among those `believed` (all, if not given): more than half of them, as close together as
    may be, so that a minority that agrees can neither be the half nor stretch it. The half's mean
    is the honest client's, its width their standard deviation, if that is not less than `SPREADS`.
    """
    spreads = list(SPREADS.values())[: strengths.shape[1]]
    return _apart(strengths.flatten(1), torch.tensor(spreads).flatten(), believed)


def scores_of_losses(deviations: Tensor, believed: Sequence[int]) -> Tensor:
    """The same of accumulated deviations of losses [n, 2]: [n]."""
    return _apart(deviations.abs(), torch.tensor(SPREADS_OF_LOSSES), believed)


def _apart(strengths: Tensor, known: Tensor, believed: Sequence[int] | None) -> Tensor:
    excess, width, half = about_the_half(strengths, believed)
    spread = torch.maximum(known.double(), width) * math.sqrt(1 + 1 / half)
    return (excess / spread).amax(1)


def about_the_half(strengths: Tensor, believed: Sequence[int] | None) -> tuple[Tensor, Tensor, int]:
    """Logarithms of strengths [n, k] less the mean of the shortest half, [n, k]; the half's width
    as a standard deviation, [k]; and how many clients it has."""
    logs = strengths.double().clamp(min=torch.finfo(torch.float64).tiny).log()
    ordered = (logs if believed is None else logs[list(believed)]).sort(0).values
    half = len(ordered) // 2 + 1
    widths = ordered[half - 1 :] - ordered[: len(ordered) - half + 1]
    start = widths.argmin(0)
    inside = start + torch.arange(half)[:, None]
    middle = ordered.gather(0, inside).mean(0)
    width = widths.gather(0, start[None])[0] / (2 * QUARTILE)
    return logs - middle, width, half


def p_values(scores: Tensor, witnesses: int) -> Tensor:
    """Of the highest of so many standard normal scores, by Bonferroni: [n]."""
    chance: Tensor = witnesses * torch.special.ndtr(-scores)
    return chance.clamp(max=1)


def trusts(standings: Mapping[int, Standing]) -> dict[int, float]:
    """Factors of the weights of all clients that were ever seen. Of those that are to be excluded
    only a minority is, the most suspect; the others stay doubted.

    A minority of all, not of those drawn in a round: among few that are drawn, the excluded may be
    most, and are no less guilty for that.
    """
    accused = [client for client, one in standings.items() if one.is_excluded]
    accused.sort(key=lambda client: -standings[client].score)
    found = {client: one.trust for client, one in standings.items()}
    spared = accused[(len(standings) - 1) // 2 :]
    return found | dict.fromkeys(spared, DOUBTED)
