"""How much speaks against each client, and what follows: alarms, standing, trust."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedgan.defenses._spreads import CRITICS, SPREADS, TOGETHER, YOUNG
from fedgan.evidence import Look, bands

USUAL_SCORE = 2.0
"""What three quarters of the clients score no more than where honest ones differ as `SPREADS` say,
which is as much as they do anywhere. By this value no federation of the calibration has more than
0.8 % false alarms; by 2.4, some would have more than 1 %."""
SHARE_OF_LOSSES = 0.1
"""Of the false alarms, where losses may speak too: they can be forged, and must not cost what the
networks tell by themselves."""
DISCOUNT = 0.8
"""Of what a client differs by in the coarse, for it is then another hospital: how much of that, in
logarithms, its witnesses are forgiven."""
MOST_EXCESS = 10.0
"""Times the median client that another hospital may differ by in the coarse; whoever differs by
more is forgiven no more than that."""
ALARMS_TO_DOUBT, ALARMS_TO_EXCLUDE, MOST_ALARMS = 2, 3, 5
QUIET = 10.0
"""A round is quiet where its p-value is at least so many alarm rates, or 1: evidence that wavers
about an alarm neither adds to a client's alarms nor takes any off (a Schmitt trigger)."""
DOUBTED = 1 / 3
"""Factor of the weight of a client between the two."""
BOUND = 5.0
"""Times the median length of the clients' updates that one may move either network by."""
QUARTILE = 0.6745
"""Of the standard normal distribution: half of it is within so much of 0."""


@dataclass
class Evidence:
    """What the rounds have told of a client in one view.

    Attributes:
        total: how it deviates, accumulated with forgetting; amplitudes and textures in logarithms.
        loudest: what is left in it of the round that told most, part by part.
    """

    total: Look
    loudest: Look

    @classmethod
    def none(cls, like: Look) -> Evidence:
        """Before the first round."""
        return cls(*(Look(*(0 * part for part in like)) for _ in range(2)))

    def add(self, seen: Look, forgetting: float) -> None:
        """A round's deviations."""
        pairs = zip(self.total, self.loudest, seen, strict=True)
        parts = [(forgetting * whole + new, forgetting * most, new) for whole, most, new in pairs]
        self.total = Look(*(whole for whole, _, _ in parts))
        self.loudest = Look(*(_louder(most, new) for _, most, new in parts))

    def steady(self, rounds: int) -> Look:
        """What has been told of it in more than one round, once there were several."""
        if rounds == 1:
            return self.total
        return Look(*(whole - one for whole, one in zip(self.total, self.loudest, strict=True)))


def _louder(one: Tensor, other: Tensor) -> Tensor:
    return other if other.square().sum() > one.square().sum() else one


@dataclass
class Standing:
    """What the server remembers of a client.

    Attributes:
        evidence: by view.
        losses: accumulated deviations of the losses that it reports, [2].
        rounds: how often it was seen.
        alarms: rounds with an alarm less quiet ones, from 0 to `MOST_ALARMS`.
        exclusions: how often its alarms have come to what excludes it, though it may have been
            spared because others were more suspect.
        cleaned: of how many of those what it did was undone.
        since: the round of the first alarm of those that count; 0 where there is none.
        score: of the last round in which it was judged.
    """

    evidence: dict[str, Evidence]
    losses: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    rounds: int = 0
    alarms: float = 0
    exclusions: int = 0
    cleaned: int = 0
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

    def cleans(self) -> bool:
        """Whether something of it is to be undone: once for each time that it came to be excluded,
        however often it changes places with others since then, of whom a minority can be."""
        due, self.cleaned = self.exclusions > self.cleaned, self.exclusions
        return due

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        evidence = {
            view: (tuple(one.total), tuple(one.loudest)) for view, one in self.evidence.items()
        }
        return {**vars(self), "evidence": evidence}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Standing:
        """What `state_dict` gave."""
        evidence = {
            view: Evidence(*(Look(*parts) for parts in one))
            for view, one in state["evidence"].items()
        }
        return cls(**{**state, "evidence": evidence})

    def add(self, seen: Mapping[str, Look], losses: Tensor, forgetting: float) -> None:
        """A round's deviations, by view."""
        for view, new in seen.items():
            self.evidence[view].add(new, forgetting)
        self.losses = forgetting * self.losses + losses
        self.rounds += 1

    def losses_by_chance(self, forgetting: float) -> Tensor:
        """How far its losses are from the others', in units of what chance has grown to, [2]."""
        # In all rounds: of losses no loudest one is left out.
        return self.losses.abs() / grown_in(self.rounds + 1, forgetting)

    def judge(self, score: float, p: float, alarm_rate: float, round: int) -> None:
        """A round's score and p-value: an alarm, a quiet round, or neither. A quiet round counts
        for half as much after each exclusion but the first: whoever was let in again too early is
        not so a second time."""
        self.score = score
        alarm = p < alarm_rate
        if alarm and self.alarms == 0:
            self.since = round
        before = self.is_excluded
        if alarm:
            self.alarms = min(MOST_ALARMS, self.alarms + 1)
        elif p >= min(1.0, QUIET * alarm_rate):
            self.alarms = max(0, self.alarms - 0.5 ** max(0, self.exclusions - 1))
        self.exclusions += self.is_excluded and not before
        if self.alarms == 0:
            self.since = 0


def strengths_of(told: Look, usual: Tensor, grown: float) -> tuple[Tensor, Tensor]:
    """How strong a client's evidence is by each witness, float64 [w, 2]: `SPREADS` in order, the
    last half where there are several classes; and how far it is from the others in what the bands
    leave of the maps, float64 [groups].

    Args:
        told: accumulated deviations.
        usual: how much each texture differs between honest clients, [groups, features]; some
            differ by far more than others, and are held against that.
        grown: what chance has grown to in the rounds that it was seen in.
    """
    by_band = bands(told.maps)
    coarse = (told.maps - by_band.sum(1)).flatten(1).square().mean(1).sqrt()
    maps = _largest_and_rms(by_band.flatten(2))  # [groups, bands, 2]
    amplitudes = _largest_and_rms(told.amplitudes.flatten(2))
    middle = usual.quantile(0.5, 1, keepdim=True)
    textures = _largest_and_rms(told.textures * middle / (usual + middle).clamp(min=1e-12))
    each = torch.cat([maps, amplitudes, textures[:, None]], 1).double().cpu() / grown
    found = torch.cat([each[0], each[1:].amax(0)]) if len(each) > 1 else each[0]
    return found, coarse.double().cpu() / grown


def grown_in(rounds: int, forgetting: float) -> float:
    """What chance of size 1 in each round grows to in `rounds`, the loudest of several left out."""
    return math.sqrt(sum(forgetting ** (2 * k) for k in range(max(1, rounds - 1))))


def _largest_and_rms(entries: Tensor) -> Tensor:
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
    excess = (excess - excess[list(believed)].quantile(0.5, 0)).amax(1)
    return strengths * (-DISCOUNT * excess.clamp(0, math.log(MOST_EXCESS))).exp()[:, None, None]


def together(strengths: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the views of both networks tell by each witness, as one view: the geometric mean of a
    client's strengths in all of them, [n, w, 2]. By chance an honest client differs in what its
    generator draws, or in what its discriminator asks for; an attacker differs in both. Nothing
    where only generators are looked at, of which all views tell much the same."""
    if not any(view in strengths for view in CRITICS):
        return {}
    return {TOGETHER: torch.stack([one.log() for one in strengths.values()]).mean(0).exp()}


def scores(strengths: Tensor, spreads: Tensor, believed: Sequence[int] | None = None) -> Tensor:
    """How far each client stands out: of witnesses' strengths [n, k] the highest logarithm of the
    ratio to an honest client's, in standard deviations of honest clients; [n].

    Honest ones are told by the shortest half of the logarithms (Grubel 1988, Ann. Statist. 16,
    619) among those `believed` (all, if not given): more than half of them, as close together as
    may be, so that a minority that agrees can neither be the half nor stretch it. The half's mean
    is the honest client's, its width their standard deviation, if that is not less than `spreads`
    [k].
    """
    excess, width, half = about_the_half(strengths, believed)
    spread = torch.maximum(spreads.double(), width) * math.sqrt(1 + 1 / half)
    return (excess / spread).amax(1)


@dataclass
class Calm:
    """How little clients differ here, on average over the rounds: an empirical null (Efron 2004, J.
    Am. Stat. Assoc. 99, 96).

    The spreads are the largest of many federations. Where all but a few clients stay far below what
    those allow for, less is suspect; where they do not, as much as the spreads say. Whoever makes
    many clients suspect only makes this 0.

    Attributes:
        total: upper quartiles of the clients' scores, added up over rounds with forgetting.
        rounds: how many, likewise.

    >>> calm = Calm()
    >>> calm.add(torch.tensor([0.5, 3.0, 1.5, 1.0]), forgetting=0.9)
    >>> calm.raises_by
    0.5
    """

    total: float = 0.0
    rounds: float = 0.0

    def add(self, scores: Tensor, forgetting: float) -> None:
        """A round's scores [n]."""
        quartile = float(scores.quantile(0.75, interpolation="lower"))  # of 4: the second highest
        self.total = forgetting * self.total + quartile
        self.rounds = forgetting * self.rounds + 1

    @property
    def raises_by(self) -> float:
        """What is to be added to all scores before their p-values are taken."""
        return max(0.0, USUAL_SCORE - self.total / self.rounds) if self.rounds else 0.0


def view_scores(view: str, strengths: Tensor, rounds: Tensor, believed: Sequence[int]) -> Tensor:
    """The same by one view, by its witnesses [n, w, 2], of clients that were seen in so
    many `rounds` [n] each: less where it was in few."""
    spreads = torch.tensor(list(SPREADS[view].values())[: strengths.shape[1]])
    found = scores(strengths.flatten(1), spreads.flatten(), believed)
    return found / youth(view, rounds)


def youth(view: str, rounds: Tensor) -> Tensor:
    """How many times as much honest clients differ as later on, [n]."""
    return 1 + YOUNG[view] / rounds.double() ** 2


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


def agreed(found: Tensor, told: Tensor) -> Tensor:
    """Scores [n] by the networks and, as far as those agree, by the losses.

    Two independent standard normals are both above t / sqrt(2) more rarely than one is above t: a
    quadrant lies within a half-plane. So sqrt(2) times the smaller one is a score as well.
    """
    return math.sqrt(2) * torch.minimum(found, told)


def either(p: Tensor, other: Tensor, share: float) -> Tensor:
    """p-values [n] of who may be accused by one or by the other, which has this `share` of the
    false alarms: the first is hardly weaker for it (a weighted Bonferroni; Holm 1979, Scand. J.
    Statist. 6, 65)."""
    return torch.minimum(p / (1 - share), other / share).clamp(max=1)


def bounds(norms: Tensor, usual: Tensor) -> Tensor:
    """Factors of the weights of updates whose networks are moved by `norms` [n, networks]: what
    makes the weight times the norm no more than `BOUND` times the `usual` one [networks], [n]. A
    client may do much with one update before anybody can know what it is."""
    usual = usual.clamp(min=torch.finfo(norms.dtype).tiny)
    found: Tensor = (BOUND / (norms / usual).amax(1)).clamp(max=1)
    return found


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
