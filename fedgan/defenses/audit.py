"""An audit of what the clients' generators draw: evidence that no client reports by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from fedgan.defenses._cleanup import Cleanup, Way
from fedgan.defenses._exhibits import broken, exhibit
from fedgan.defenses._suspicion import (
    Standing,
    forgiven,
    p_values,
    scores,
    scores_of_losses,
    trusts,
)
from fedgan.defenses.base import Defense, Detector, Sampler, ServerMeans, Verdict
from fedgan.errors import UserError
from fedgan.evidence import SMALLEST, Groups, Look, describe, description_size, deviations, split
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix

FEWEST = 3
"""Clients: of two, nobody can say who is the odd one."""
YOUNG = 2
"""Honest clients differ by 1 + `YOUNG` / t^2 times as much when each was seen t times: from a model
that has hardly begun to learn, they go different ways."""
CHUNK = 80
"""Samples that are drawn at a time."""
BROKEN = 100.0
"""Score of a client whose generator draws what is not finite."""


class Audit(Detector):
    """Judges clients by what their generators draw from latents of the server's, all the same.

    Source: fedgan; docs/audit.md has the statistic, its calibration, and what it cannot see.

    In each round, every client's generator draws `samples` images from latents and labels that are
    new in that round. Their mean images, how much each place of them varies, and their textures, of
    all classes together and of each, less those of the median client, less what brightness,
    contrast, gamma, shift and blur of the whole image explain, are added to the client's evidence
    E_i = forgetting * E_i + e_i: what honest clients do at random stays small, and what a trigger
    does in every round adds up. A witness is the largest entry of E_i, or the root mean square, in
    a band of fineness of either kind of maps, or in the textures, of all classes or of the class
    where it is largest; it is discounted where the client differs in the coarse as well, which
    tells another hospital. Its score is the logarithm of its ratio to an honest client's, over the
    spread of honest clients; both are told by the shortest half of the clients, and the spread is
    at least what was found where nobody attacked. A client's score is the highest of its
    witnesses', less in its first rounds; its p-value is that of a standard normal, times the number
    of witnesses.

    p below `alarm_rate` is an alarm, which adds one to a client's count (5 at most); a round
    without takes one off. With two a client has a third of its weight, with three nothing; nobody
    is excluded on one round's word. Of the N clients that were ever seen at most (N - 1) // 2 are
    excluded, those of the highest scores; in a round in which nobody else takes part, the global
    model stays as it is.

    A generator that draws what is not finite is an alarm, and is not compared. Where fewer than
    three are left to compare with, a round tells nothing: weights are those of the standings.

    Assumes n >= 2f + 1. Costs `samples` images of each client a round, and memory of a few times
    (1 + classes) C H W for each client.

    Args:
        samples: images that each generator draws in a round.
        forgetting: factor in [0, 1) of old evidence a round that a client takes part in.
        alarm_rate: false alarms for a client in a round, at most, in (0, 0.5).
        cleanup: what is done when a client is excluded about what it has put into the global
            model: `rollback` goes back to the model before the first round since its first alarm
            that counts in which it had a weight (`memory` rounds at most), `remove` takes off what
            its updates since then were weighed by (where no rule follows), and `none` trains on.
        memory: rounds whose models are kept for that.
        losses: let the mean losses that clients report speak too. They are accumulated and scored
            likewise, and believed as far as the audit agrees: a client's score grows by half the
            smaller of the two, where both are above 0.

    >>> Audit(alarm_rate=0.05).alarm_rate
    0.05
    """

    name: ClassVar[str] = "audit"
    runs_generators: ClassVar[bool] = True

    def __init__(
        self,
        samples: int = 160,
        forgetting: float = 0.9,
        alarm_rate: float = 0.01,
        cleanup: Way = "rollback",
        memory: int = 6,
        losses: bool = False,
    ) -> None:
        if samples < 16:
            raise ValueError(f"init_args.samples is {samples}; it must be at least 16")
        if not 0 <= forgetting < 1:
            raise ValueError(f"init_args.forgetting is {forgetting}; it must be in [0, 1)")
        if not 0 < alarm_rate < 0.5:
            raise ValueError(f"init_args.alarm_rate is {alarm_rate}; it must be in (0, 0.5)")
        if cleanup not in get_args(Way):
            raise ValueError(f"init_args.cleanup is {cleanup}; it is rollback, remove or none")
        if memory < 1:
            raise ValueError(f"init_args.memory is {memory}; it must be at least 1")
        self.samples = samples
        self.forgetting = forgetting
        self.alarm_rate = alarm_rate
        self.losses = losses
        self.cleanup = Cleanup(cleanup, memory)
        self.standings: dict[int, Standing] = {}
        self.usual: Tensor | float = 0.0
        """How much each texture differs between honest clients, [groups, features]."""

    def check(self, n: int) -> None:
        if n < FEWEST:
            raise UserError(f"defense: {self.name} needs at least {FEWEST} clients; n is {n}")

    def __call__(
        self, updates: UpdateMatrix, reports: Sequence[Report], server: ServerMeans
    ) -> Verdict:
        assert server.sampler is not None
        if min(server.sampler.image[1:]) < SMALLEST:
            raise UserError(
                f"defense: {self.name} needs images of at least {SMALLEST}x{SMALLEST} pixels; "
                f"data.size is {min(server.sampler.image[1:])}"
            )
        groups, described = self._described(updates, server, server.sampler)
        seen = split(described, len(groups), server.sampler.image)
        return self.judge(updates, reports, seen, server)

    def _described(
        self, updates: UpdateMatrix, server: ServerMeans, sampler: Sampler
    ) -> tuple[Groups, Tensor]:
        """What each client's generator draws from this round's latents: [n, S], on the CPU."""
        rng = server.rng("audit")
        latents = torch.randn((self.samples, sampler.latent_dim), generator=rng)
        drawn_for = torch.arange(self.samples) % sampler.classes
        labels = drawn_for
        if sampler.multi_label:
            labels = torch.nn.functional.one_hot(drawn_for, sampler.classes).float()
        groups = Groups(drawn_for, sampler.classes)
        device = server.parameters.device
        batches = list(
            zip(latents.to(device).split(CHUNK), labels.to(device).split(CHUNK), strict=True)
        )

        def statistic(row: Tensor) -> Tensor:
            model = server.parameters + row
            return describe(torch.cat([sampler(model, *batch) for batch in batches]), groups)

        size = description_size(len(groups), sampler.image)
        return groups, updates.each(statistic, size).cpu()

    def judge(
        self,
        updates: UpdateMatrix,
        reports: Sequence[Report],
        seen: Look,
        server: ServerMeans,
    ) -> Verdict:
        """Judges a round by a look at what the n clients' generators draw."""
        self.cleanup.begin(server.round, server.parameters)
        before = trusts(self.standings)
        finite = torch.stack([part.flatten(1).isfinite().all(1) for part in seen]).all(0)
        believed = self._believed(updates.clients, finite)
        found = torch.full((len(updates),), torch.nan, dtype=torch.float64)
        alarms = torch.zeros(len(updates), dtype=torch.bool)
        ratios = found
        if believed:
            # What is not finite cannot be compared, and would leave nobody's evidence finite.
            seen = Look(*(_filled(part, finite, believed) for part in seen))
            found, alarms, ratios = self._evidence(updates, reports, seen, finite, believed)
            for i, client in enumerate(updates.clients):
                self.standings[client].judge(float(found[i]), bool(alarms[i]), server.round)
        now = trusts(self.standings)
        fallen = {client for client, trust in now.items() if trust < before.get(client, 1.0)}
        exhibits = tuple(
            exhibit(client, self.standings[client], ratios[i], seen.maps[i])
            if finite[i]
            else broken(client, seen.maps[i, 0])
            for i, client in enumerate(updates.clients)
            if client in fallen
        )
        factors = [now.get(client, 1.0) for client in updates.clients]
        trust = torch.tensor(factors, dtype=torch.float64)
        weights = updates.weights * trust
        weights = weights / weights.sum() if weights.any() else weights
        newly = {client: self.standings[client].since for client in fallen if now[client] == 0}
        correction = self.cleanup.correction(newly, server.round, server.parameters)
        suspects = {client for client, one in self.standings.items() if one.alarms and now[client]}
        self.cleanup.end(server.round, updates, weights, suspects)
        acted = bool((trust < 1).any())
        return Verdict(weights, found, alarms, acted, correction=correction, exhibits=exhibits)

    def _evidence(
        self,
        updates: UpdateMatrix,
        reports: Sequence[Report],
        seen: Look,
        finite: Tensor,
        believed: list[int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Adds a round's to what is known: scores [n], alarms [n], and how many times that of the
        median client each one's evidence is, by witness [n, w]."""
        told = torch.tensor([[one.d_loss, one.g_loss] for one in reports], dtype=torch.float64)
        standings = self._with_evidence(updates.clients, believed, seen, told)
        assert isinstance(self.usual, Tensor)
        seen_of = (one.witnesses(self.forgetting, self.usual) for one in standings)
        strengths, coarse = (torch.stack(parts) for parts in zip(*seen_of, strict=True))
        strengths = forgiven(strengths, coarse, believed)
        found = self._scores(standings, strengths, believed)
        found[~finite] = BROKEN
        # The largest entry and the root mean square of the same entries count as one witness.
        alarms = p_values(found, strengths.shape[1]) < self.alarm_rate
        alarms &= torch.tensor([one.rounds > 1 for one in standings])  # nobody on one round's word
        return found, alarms, (strengths / strengths[believed].quantile(0.5, 0)).amax(2)

    def _scores(
        self, standings: Sequence[Standing], strengths: Tensor, believed: Sequence[int]
    ) -> Tensor:
        young = torch.tensor([1 + YOUNG / one.rounds**2 for one in standings], dtype=torch.float64)
        found = scores(strengths, believed) / young
        if not self.losses:
            return found
        told = torch.stack([one.losses for one in standings])
        agreeing = torch.minimum(found, scores_of_losses(told, believed) / young)
        return found + agreeing.clamp(min=0) / 2

    def _believed(self, clients: Sequence[int], finite: Tensor) -> list[int]:
        """Positions of the clients that say what is usual: those that are not excluded, and whose
        images are finite. Nobody where they are too few to say it: such a round tells nothing."""
        sound = [i for i, fine in enumerate(finite.tolist()) if fine]
        trust = trusts(self.standings)
        found = [i for i in sound if trust.get(clients[i], 1.0) > 0]
        if len(found) >= FEWEST:
            return found
        return sound if len(sound) >= FEWEST and 2 * len(found) > len(sound) else []

    def _with_evidence(
        self,
        clients: Sequence[int],
        believed: list[int],
        seen: Look,
        losses: Tensor,
    ) -> list[Standing]:
        """The clients' standings, with this round's evidence, in order."""
        losses = losses - losses[believed].quantile(0.5, 0)
        apart = deviations(seen, believed)
        middle = apart.textures[believed].abs().double().quantile(0.5, 0).float()
        self.usual = self.forgetting * self.usual + middle
        for client, *parts, loss in zip(clients, *apart, losses, strict=True):
            if client not in self.standings:
                self.standings[client] = Standing(*(0 * part for part in (*parts, loss)))
            self.standings[client].add(Look(*parts), loss, self.forgetting)
        return [self.standings[client] for client in clients]

    def check_rule(self, rule: Defense) -> None:
        if self.cleanup.way == "remove" and not rule.is_fair_mean:
            raise UserError(
                f"defense: {self.name}: cleanup is remove, which takes off what it has weighed "
                "itself; in front of another rule it must be rollback or none"
            )

    def state_dict(self) -> dict[str, Any]:
        standings = {client: vars(one).copy() for client, one in self.standings.items()}
        return {"standings": standings, "usual": self.usual, "cleanup": self.cleanup.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.standings = {client: Standing(**one) for client, one in state["standings"].items()}
        self.usual = state["usual"]
        self.cleanup.load_state_dict(state["cleanup"])


def _filled(part: Tensor, finite: Tensor, believed: list[int]) -> Tensor:
    """A part of a look at n clients, with the median of those `believed` for what is not finite."""
    if finite.all():
        return part
    part = part.clone()
    part[~finite] = part[believed].double().quantile(0.5, 0).float()
    return part
