"""An audit of what the clients' generators draw: evidence that no client reports by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from fedgan.defenses._cleanup import Cleanup, Way
from fedgan.defenses._exhibits import exhibit
from fedgan.defenses._suspicion import (
    Standing,
    forgiven,
    p_values,
    scores,
    scores_of_losses,
    trusts,
)
from fedgan.defenses.base import Detector, Sampler, ServerMeans, Verdict
from fedgan.errors import UserError
from fedgan.evidence import Groups, Look, describe, description_size, deviations, split
from fedgan.reports import Report
from fedgan.updates import UpdateMatrix

FEWEST = 3
"""Clients: of two, nobody can say who is the odd one."""
YOUNG = 2
"""Honest clients differ by 1 + `YOUNG` / t^2 times as much when each was seen t times: from a model
that has hardly begun to learn, they go different ways."""
CHUNK = 80
"""Samples that are drawn at a time."""


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
    is excluded on one round's word. At most (n - 1) // 2 clients are excluded, those of the highest
    scores.

    Assumes n >= 2f + 1. Costs `samples` images of each client a round, and memory of a few times
    (1 + classes) C H W for each client.

    Args:
        samples: images that each generator draws in a round.
        forgetting: factor in [0, 1) of old evidence a round that a client takes part in.
        alarm_rate: false alarms for a client in a round, at most, in (0, 0.5).
        cleanup: what is done when a client is excluded about what it has put into the global
            model: `rollback` goes back to the model before its first alarm that counts (`memory`
            rounds at most), `remove` takes off what its updates since then were weighed by, and
            `none` trains on.
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
        believed = self._believed(updates.clients)
        told = torch.tensor([[one.d_loss, one.g_loss] for one in reports], dtype=torch.float64)
        standings = self._with_evidence(updates.clients, believed, seen, told)
        assert isinstance(self.usual, Tensor)
        seen_of = (one.witnesses(self.forgetting, self.usual) for one in standings)
        strengths, coarse = (torch.stack(parts) for parts in zip(*seen_of, strict=True))
        strengths = forgiven(strengths, coarse, believed)
        found = self._scores(standings, strengths, believed)
        # The largest entry and the root mean square of the same entries count as one witness.
        alarms = p_values(found, strengths.shape[1]) < self.alarm_rate
        alarms &= torch.tensor([one.rounds > 1 for one in standings])  # nobody on one round's word
        before = [one.trust for one in standings]
        for one, alarm in zip(standings, alarms.tolist(), strict=True):
            one.judge(alarm, server.round)
        trust = trusts(standings, found)
        weights = updates.weights * trust / (updates.weights * trust).sum()
        ratios = (strengths / strengths[believed].quantile(0.5, 0)).amax(2)
        exhibits = tuple(
            exhibit(client, one, ratios[i], seen.maps[i])
            for i, (client, one) in enumerate(zip(updates.clients, standings, strict=True))
            if one.trust < before[i]
        )
        correction = self._clean_up(updates, standings, before, trust, server)
        self._note(updates, standings, weights)
        acted = bool((trust < 1).any())
        return Verdict(weights, found, alarms, acted, correction=correction, exhibits=exhibits)

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

    def _clean_up(
        self,
        updates: UpdateMatrix,
        standings: Sequence[Standing],
        before: Sequence[float],
        trust: Tensor,
        server: ServerMeans,
    ) -> Tensor | None:
        """What undoes the doings of those who are excluded from now on."""
        newly = {
            client: one.since
            for client, one, was, now in zip(
                updates.clients, standings, before, trust.tolist(), strict=True
            )
            if now == 0 < was
        }
        return self.cleanup.correction(newly, server.parameters)

    def _note(self, updates: UpdateMatrix, standings: Sequence[Standing], weights: Tensor) -> None:
        """What may have to be undone later."""
        suspects = {
            client
            for client, one in zip(updates.clients, standings, strict=True)
            if one.alarms and not one.is_excluded
        }
        self.cleanup.end(updates, weights, suspects)

    def _believed(self, clients: Sequence[int]) -> list[int]:
        """Positions of the clients that say what is usual: those that are not excluded."""
        found = [
            i
            for i, client in enumerate(clients)
            if client not in self.standings or not self.standings[client].is_excluded
        ]
        return found if len(found) >= FEWEST else list(range(len(clients)))

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

    def state_dict(self) -> dict[str, Any]:
        standings = {client: vars(one).copy() for client, one in self.standings.items()}
        return {"standings": standings, "usual": self.usual, "cleanup": self.cleanup.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.standings = {client: Standing(**one) for client, one in state["standings"].items()}
        self.usual = state["usual"]
        self.cleanup.load_state_dict(state["cleanup"])
